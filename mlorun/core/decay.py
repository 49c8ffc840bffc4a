"""What an optimizer adds to its problem's objective, its step length and momentum, one number a parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, NAdam, Optimizer, RAdam, RMSprop, Rprop

# these add weight_decay * theta to the gradient unless their group says `decoupled_weight_decay`
_L2 = (SGD, Adadelta, Adagrad, Adam, Adamax, ASGD, NAdam, RAdam, RMSprop, Rprop)


def l2_decay(optimizer: Optimizer, theta: Sequence[Tensor]) -> tuple[float, ...]:
    """wd for each parameter where the optimizer minimizes loss + wd norm(theta)^2 / 2; 0 for decoupled decay.

    Decoupled decay (AdamW, Muon) shrinks the parameters beside the step: no objective has it as its gradient.
    """
    if not isinstance(optimizer, _L2):
        return (0.0,) * len(theta)
    return _by_parameter(
        optimizer,
        theta,
        lambda group: 0.0 if group.get("decoupled_weight_decay") else float(group.get("weight_decay", 0.0)),
    )


def learning_rates(optimizer: Optimizer, theta: Sequence[Tensor]) -> tuple[float, ...]:
    """The learning rate of each parameter now."""
    return _by_parameter(optimizer, theta, lambda group: float(group["lr"]))


def momenta(optimizer: Optimizer, theta: Sequence[Tensor]) -> tuple[float, ...]:
    """The momentum of each parameter now; 0 for an optimizer that has no such option."""
    return _by_parameter(optimizer, theta, lambda group: float(group.get("momentum", 0.0)))


def _by_parameter(
    optimizer: Optimizer, theta: Sequence[Tensor], number: Callable[[dict[str, Any]], float]
) -> tuple[float, ...]:
    found = {id(p): number(group) for group in optimizer.param_groups for p in group["params"]}
    return tuple(found.get(id(p), 0.0) for p in theta)
