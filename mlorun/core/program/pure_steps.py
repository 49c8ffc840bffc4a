"""Optimizer steps as pure, differentiable functions of parameters, gradient and state.

What unrolling and SAMA need. Each torch optimizer that mlorun can differentiate through registers its step
here, for one parameter. The functions follow torch's own arithmetic, with one difference: the derivative of a
root is 0, not infinite, where its argument is 0, as it is for a gradient entry that has always been 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop

from mlorun.errors import ConfigError
from mlorun.hypergradient.inner_loop import Options, State


@dataclass(frozen=True)
class PureStep:
    """`step(options, state, theta, gradient)` to (theta', state'); `learnable`: options that may have a graph."""

    step: Callable[[Options, State, Tensor, Tensor], tuple[Tensor, State]]
    learnable: tuple[str, ...]


def sgd(options: Options, state: State, theta: Tensor, grad: Tensor) -> tuple[Tensor, State]:
    """Gradient descent, with momentum or Nesterov's (Sutskever et al. 2013), as torch.optim.SGD."""
    grad = _with_decay(options, theta, grad)
    momentum = options["momentum"]
    if isinstance(momentum, float | int) and momentum == 0:
        return theta - options["lr"] * grad, {}
    buffer = state.get("momentum_buffer")
    # torch starts the buffer at the first gradient, without damping it
    buffer = grad if buffer is None else momentum * buffer + (1 - options["dampening"]) * grad
    direction = grad + momentum * buffer if options["nesterov"] else buffer
    return theta - options["lr"] * direction, {"momentum_buffer": buffer}


def adam(options: Options, state: State, theta: Tensor, grad: Tensor) -> tuple[Tensor, State]:
    """Adam and AdamW (arXiv:1412.6980, arXiv:1711.05101), as torch.optim.Adam and AdamW."""
    lr = options["lr"]
    if options["decoupled_weight_decay"]:
        grad = -grad if options["maximize"] else grad
        theta = theta - lr * options["weight_decay"] * theta
    else:
        grad = _with_decay(options, theta, grad)
    beta1, beta2 = options["betas"]
    count = _count(state, theta)
    first = beta1 * state.get("exp_avg", torch.zeros_like(theta)) + (1 - beta1) * grad
    second = beta2 * state.get("exp_avg_sq", torch.zeros_like(theta)) + (1 - beta2) * grad * grad
    after: State = {"step": count, "exp_avg": first, "exp_avg_sq": second}
    if options["amsgrad"]:
        second = torch.maximum(state.get("max_exp_avg_sq", torch.zeros_like(theta)), second)
        after["max_exp_avg_sq"] = second
    root = _root(second / _bias_correction(beta2, count, theta))
    moved = theta - lr * (first / _bias_correction(beta1, count, theta)) / (root + options["eps"])
    return moved, after


def rmsprop(options: Options, state: State, theta: Tensor, grad: Tensor) -> tuple[Tensor, State]:
    """RMSprop (Tieleman and Hinton 2012), centred or with momentum, as torch.optim.RMSprop."""
    grad = _with_decay(options, theta, grad)
    alpha = options["alpha"]
    square = alpha * state.get("square_avg", torch.zeros_like(theta)) + (1 - alpha) * grad * grad
    after: State = {"square_avg": square}
    variance = square
    if options["centered"]:
        mean = alpha * state.get("grad_avg", torch.zeros_like(theta)) + (1 - alpha) * grad
        after["grad_avg"] = mean
        variance = square - mean * mean
    direction = grad / (_root(variance) + options["eps"])
    momentum = options["momentum"]
    if isinstance(momentum, float | int) and momentum == 0:
        return theta - options["lr"] * direction, after
    buffer = momentum * state.get("momentum_buffer", torch.zeros_like(theta)) + direction
    return theta - options["lr"] * buffer, {**after, "momentum_buffer": buffer}


def adagrad(options: Options, state: State, theta: Tensor, grad: Tensor) -> tuple[Tensor, State]:
    """Adagrad (Duchi et al. 2011), as torch.optim.Adagrad."""
    grad = _with_decay(options, theta, grad)
    count = _count(state, theta)
    lr = options["lr"] / (1 + (count.to(_wide(theta)) - 1) * options["lr_decay"])
    start = state.get("sum", torch.full_like(theta, options["initial_accumulator_value"]))
    total = start + grad * grad
    return theta - lr * grad / (_root(total) + options["eps"]), {"step": count, "sum": total}


PURE_STEPS: dict[type[Optimizer], PureStep] = {
    SGD: PureStep(sgd, ("lr", "momentum", "weight_decay")),
    Adam: PureStep(adam, ("lr", "weight_decay")),
    AdamW: PureStep(adam, ("lr", "weight_decay")),
    RMSprop: PureStep(rmsprop, ("lr", "momentum", "weight_decay")),
    Adagrad: PureStep(adagrad, ("lr", "weight_decay")),
}


def pure_step_of(optimizer: Optimizer) -> PureStep:
    """The step of this very type. Raises ConfigError for one that is not registered."""
    if type(optimizer) not in PURE_STEPS:
        raise ConfigError(
            f"{type(optimizer).__name__} has no registered step to differentiate through",
            fix="use one of "
            + ", ".join(sorted(kind.__name__ for kind in PURE_STEPS))
            + ", register its step in mlorun.core.program.pure_steps.PURE_STEPS, or choose another hypergradient",
        )
    return PURE_STEPS[type(optimizer)]


def _count(state: State, theta: Tensor) -> Tensor:
    """The number of this step, from 1, ()."""
    return state["step"] + 1 if "step" in state else torch.ones((), dtype=_wide(theta), device=theta.device)


def _bias_correction(beta: float | Tensor, count: Tensor, theta: Tensor) -> Tensor:
    """1 - beta^count, (). By expm1: in float32 the difference loses its digits for beta near 1."""
    beta = float(beta)
    return -torch.expm1(count.to(_wide(theta)) * (math.log(beta) if beta > 0 else -math.inf))


def _wide(theta: Tensor) -> torch.dtype:
    """float32 at least: a half-precision number cannot count steps."""
    return torch.promote_types(theta.dtype, torch.float32)


def _with_decay(options: Options, theta: Tensor, grad: Tensor) -> Tensor:
    """The gradient that the optimizer minimizes with: sign and L2 weight decay applied."""
    if options["maximize"]:
        grad = -grad
    decay = options["weight_decay"]
    return grad if isinstance(decay, float | int) and decay == 0 else grad + decay * theta


def _root(x: Tensor) -> Tensor:
    """sqrt(x), with derivative 0 rather than infinity where x is 0."""
    zero = x <= 0
    return torch.where(zero, torch.zeros_like(x), torch.sqrt(torch.where(zero, torch.ones_like(x), x)))
