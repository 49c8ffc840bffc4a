"""Second derivatives by differences of first gradients: what double backward is checked by, and stands in for it.

A difference of gradients sees every kernel as it is, and honours stop-gradients: no second derivative is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.estimator import Hypergradient, Needs, Nested
from mlorun.hypergradient.estimators.implicit import Carry
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.autograd import gradient

RADII = {torch.float64: (1e-5, 1e-6)}  # of a difference, relative to the point; a kink may spoil one of them
COARSE = (1e-2, 3e-3)  # in lower precision
LARGEST_CROSS = 1000  # hyperparameters that are perturbed one at a time


class ByDifferences(Hypergradient):
    """-B H^-1 v with both by differences of first gradients; what stands in where double backward is wrong."""

    def __init__(
        self, solve: Solver, linearize: Literal["after", "before"], nested: Nested, *, stop_gradient: bool
    ) -> None:
        self.solve = solve
        self.stop_gradient = stop_gradient
        self.needs = Needs(linearize=linearize, nested=nested, answers="solve")

    def __call__(self, level: Level, v: Vector, carry: Carry | None) -> tuple[dict[str, Vector], Carry]:
        level = DifferencedLevel(level)
        x, start = self.solve(level, v, carry.solve if carry else None)
        lam = vectors.detach(level.flat_lam())
        if self.stop_gradient and sum(t.numel() for t in lam) <= LARGEST_CROSS:
            crossed = _entry_by_entry(level, x, lam)
        else:
            crossed = _difference(lambda theta: lam_gradient(level, theta), level.theta, x)
        return level.split_lam(vectors.negate(crossed)), Carry(DoubleBackward(), start)

    def solution(self, level: Level, g: Vector) -> Vector:
        return self.solve(DifferencedLevel(level), g, None)[0]

    def unpack(self, packed: dict[str, Any]) -> Carry:
        return Carry(DoubleBackward(), packed["solve"])


class DifferencedLevel(Level):
    """A level whose Hessian products are differences of first gradients, finely in float64."""

    def __init__(self, level: Level) -> None:
        self.__dict__.update(level.__dict__)

    def hvp(self, x: Vector) -> Vector:
        lam = vectors.detach(self.flat_lam())
        return self.with_decay(_difference(lambda theta: theta_gradient(self, theta, lam), self.theta, x), x)


def theta_gradient(level: Level, theta: Vector, lam: Vector) -> Vector:
    """d loss / d theta at these values, every lam in one vector."""
    leaves = vectors.leaves(theta)
    return vectors.detach(gradient(level.loss(leaves, level.split_lam(lam)), leaves))


def lam_gradient(level: Level, theta: Vector) -> Vector:
    """d loss / d lam at this theta."""
    leaves = vectors.leaves(level.flat_lam())
    return vectors.detach(gradient(level.loss(theta, level.split_lam(leaves)), leaves))


def _entry_by_entry(level: Level, x: Vector, lam: Vector) -> Vector:
    """B x by one difference of the theta-gradient for every entry of lam: honours stop-gradients."""
    row = vectors.flat(lam)
    radius = radii(level.theta)[0] * max(1.0, float(row.norm()))
    entries = []
    for index in range(len(row)):
        unit = torch.zeros_like(row)
        unit[index] = 1
        sides = [theta_gradient(level, level.theta, vectors.shaped(row + s * radius * unit, lam)) for s in (1, -1)]
        entries.append(slope(x, sides, radius))
    return vectors.shaped(row.new_tensor(entries), lam)


def _difference(function: Callable[[Vector], Vector], point: Vector, direction: Vector) -> Vector:
    """The derivative of `function` along `direction`."""
    length = float(vectors.norm(direction))
    if not length:
        return vectors.zeros_like(function(point))
    eps = radii(point)[0] * max(1.0, float(vectors.norm(point))) / length
    ahead, behind = (function(vectors.add(point, direction, alpha=s * eps)) for s in (1, -1))
    return vectors.scale(vectors.add(ahead, behind, alpha=-1.0), 0.5 / eps)


def slope(x: Vector, sides: list[Vector], radius: float) -> float:
    return float(vectors.dot(x, vectors.add(sides[0], sides[1], alpha=-1.0))) / (2 * radius)


def radii(like: Vector) -> tuple[float, ...]:
    return RADII.get(like[0].dtype, COARSE)
