"""NaN and infinity: they never reach an upper problem's parameters, and the problem they came from is named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mlorun.errors import NonFiniteError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.vectors import Vector


class Guard:
    """Looks at the gradient of every problem that differentiates through others.

    at_once   ask now, and raise: on the CPU, where asking is free. Else, where it would wait for the device, such a
              gradient becomes zero and its flag is raised, which a report reads together with the metrics.
    flags     by problem, (): whether one of its gradients was not finite since the flags were cleared
    """

    def __init__(self, *, at_once: bool) -> None:
        self.at_once = at_once
        self.flags: dict[str, Tensor] = {}

    def __call__(self, name: str, gradient: Vector, error: Callable[[], NonFiniteError]) -> Vector:
        """The gradient of problem `name`, fit to be used. Raises `error()` for one that is not, if asked at once."""
        finite = vectors.is_finite(gradient)
        if self.at_once:
            if not finite:
                raise error()
            return gradient
        broken = finite.logical_not()
        self.flags[name] = self.flags[name] | broken if name in self.flags else broken
        return tuple(torch.where(finite, part, 0.0) for part in gradient)


def broken_loss(name: str, loss: float, when: str) -> NonFiniteError:
    """A loss that is not finite."""
    return NonFiniteError(
        f"the loss of {name} is {loss}",
        where=f"problems.{name}, {when}",
        fix=f"a smaller learning rate ({name}.optimizer.lr=...), or {name}.gradient_clip=1.0",
    )


def broken_gradient(name: str, losses: Mapping[str, float], choices: Mapping[str, str], when: str) -> NonFiniteError:
    """Why the gradient of an upper problem is not finite: a loss, its own or one below it, or an estimator.

    losses    of the problems that it differentiates through, where they are now, lowest first; and its own
    choices   what each edge uses, by "UPPER <- LOWER"
    """
    for other, loss in losses.items():
        if not math.isfinite(loss):
            return broken_loss(other, loss, when)
    through = sorted(edge for edge in choices if edge.startswith(f"{name} <- "))
    return NonFiniteError(
        f"the hypergradient of {name} is not finite, though every loss is",
        where=f"problems.{name}, {when}",
        seen=", ".join(f"{edge}: {choices[edge]}" for edge in through),
        fix="a smaller step_size, more damping, or another hypergradient, e.g. t1t2",
    )
