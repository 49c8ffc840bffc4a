"""NaN and infinity: they never reach an upper problem's parameters, and the problem they came from is named."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mlorun.core.adjoint import Adjoint
from mlorun.core.replay.views import Views
from mlorun.errors import NonFiniteError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.vectors import Vector

log = logging.getLogger("mlorun.core")


class Guard:
    """Looks at the gradient of every problem that differentiates through others.

    at_once   ask now, and raise: on the CPU, where asking is free. Else, where it would wait for the device, such a
              gradient becomes zero and its flag is raised, which a report reads together with the metrics.
    flags     by problem, (): whether one of its gradients was not finite since the flags were cleared
    """

    def __init__(self, views: Views, adjoint: Adjoint, *, at_once: bool) -> None:
        self.at_once = at_once
        self.flags: dict[str, Tensor] = {}
        self._views = views
        self._adjoint = adjoint

    def __call__(self, name: str, gradient: Vector, loss: Tensor, when: str) -> Vector:
        """The gradient of problem `name`, fit to be used. Raises NonFiniteError for one that is not, if asked at once.

        loss, when   of the problem, (), and at which step, for the error
        """
        finite = vectors.is_finite(gradient)
        if self.at_once:
            if not finite:
                raise self.error(name, float(loss), when)
            return gradient
        broken = finite.logical_not()
        self.flags[name] = self.flags[name] | broken if name in self.flags else broken
        return tuple(torch.where(finite, part, 0.0) for part in gradient)

    def error(self, name: str, loss: float, when: str) -> NonFiniteError:
        """Why the gradient of problem `name`, whose loss is given, is not finite: a loss below it, or an estimator."""
        losses = {}
        with self._views.program.replay():
            for low in reversed(self._adjoint.below(name)):
                view = self._views.view(low, ())
                losses[low] = float(view.loss({low: view.point}).detach())
        return broken_gradient(name, {**losses, name: loss}, self._adjoint.choices(), when)


def broken_loss(name: str, loss: float, when: str) -> NonFiniteError:
    """A loss that is not finite."""
    return NonFiniteError(
        f"the loss of {name} is {loss}",
        where=f"problems.{name}, {when}",
        fix=f"a smaller learning rate ({name}.optimizer.lr=...), or {name}.gradient_clip=1.0",
    )


def check_metrics(metrics: Mapping[str, float], when: str, *, losses_may_be: bool = False) -> None:
    """Raise NonFiniteError for a loss that is not finite, unless losses may be so; warn of every other metric."""
    for name, value in metrics.items():
        if math.isfinite(value):
            continue
        _, _, metric = name.rpartition("/")
        if metric == "loss" and not losses_may_be:
            raise NonFiniteError(
                f"{name} is {value}", where=when, fix="a smaller learning rate, or a gradient_clip for what diverged"
            )
        log.warning("%s is %s in %s", name, value, when)


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
        fix="more damping, a smaller step (step_size or rho, where it has one), or another hypergradient, e.g. t1t2",
    )
