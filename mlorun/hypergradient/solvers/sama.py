"""SAMA: the optimizer's own scaling of gradients in place of the inverse Hessian (Choe et al. 2023)."""

from __future__ import annotations

from typing import Any

from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


class Sama(Solver):
    """x = D v, D = -d(theta')/d(gradient) of the level's optimizer at its present state (arXiv:2310.05674).

    Sign and scale: D is by how much the next step would grow with the gradient, with the learning rate, bias
    correction and momentum's (1 - dampening) or (1 - beta1) in it. For plain SGD x = lr v, so that Identity
    with `scale: lr` is a special case. Entries may be negative: with `maximize`, and for adaptive steps where
    an entry of the gradient outgrows its past.

    No Hessian product: one gradient, and arithmetic on vectors. An adaptive step normalizes: D is small in an
    optimizer's first steps; and it is up to lr / eps for an entry whose gradient has always been 0. Raises
    ConfigError for an optimizer whose step is not registered in pure_steps.py.
    """

    curvature = False

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        return level.precondition(v), None
