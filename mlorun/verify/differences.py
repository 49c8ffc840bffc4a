"""Second derivatives by differences of first gradients: what double backward is checked by, and stands in for it.

A difference of gradients sees every kernel as it is, and honours stop-gradients: no second derivative is taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.derivatives import Unsupported
from mlorun.hypergradient.estimator import Hypergradient, Needs
from mlorun.hypergradient.estimators.implicit import Carry
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector

DISAGREE = 1e-3  # relative, in float64, above which two ways to one second derivative are two numbers
PAIRS = 3  # of random directions that are tried
RADII = {torch.float64: (1e-5, 1e-6)}  # of a difference, relative to the point; a kink may spoil one of them
COARSE = (1e-2, 3e-3)  # in lower precision
LARGEST_CROSS = 1000  # hyperparameters that are perturbed one at a time


@dataclass(frozen=True)
class SecondDerivatives:
    """u'B x and y'H x in the ways there are, for that pair of random directions on which they differ most.

    of_theta     <x, difference of the theta-gradient along u in lam>: the derivative of the update
    of_lam       <u, difference of the lam-gradient along x in theta>: what a central difference is an estimate of
    backward     u'B x by double backward; None where a kernel has none
    hessian      (y'H x by a difference of gradients, the same by double backward or None)
    off_of_lam, off_backward, off_hessian   relative distances from the difference of the theta-gradient
    """

    of_theta: float
    of_lam: float
    backward: float | None
    hessian: tuple[float, float | None]
    off_of_lam: float
    off_backward: float
    off_hessian: float
    tolerance: float

    @property
    def stop_gradient(self) -> bool:
        """Whether the two orders of differentiation differ: something between lam and theta is detached."""
        return self.off_of_lam > self.tolerance

    @property
    def backward_is_wrong(self) -> bool:
        return max(self.off_backward, self.off_hessian) > self.tolerance

    @property
    def fault(self) -> str:
        """What double backward does, in numbers."""
        mixed = self.off_backward >= self.off_hessian
        by_difference, by_backward = (self.of_theta, self.backward) if mixed else self.hessian
        name = "d2L / dlam dtheta" if mixed else "the Hessian"
        along = f"a difference of the lower gradient gives {by_difference:.4g} for {name} along random directions"
        if by_backward is None:
            return f"a kernel of its loss has no double backward; {along}"
        what = "cuts second derivatives off" if by_backward == 0 else "has a wrong double backward"
        return f"a kernel of its loss {what}: {along}, double backward {by_backward:.4g}"


def second_derivatives(level: Level) -> SecondDerivatives:
    """Compare the ways to the second derivatives of one level's loss. About 40 gradients."""
    draws = torch.Generator().manual_seed(0)
    lam = vectors.detach(level.flat_lam())
    double = level.theta[0].dtype == torch.float64
    graph = _gradient_graph(level)
    rows = []
    for _ in range(PAIRS):
        x, y = (_direction(level.theta, draws) for _ in range(2))
        u = _direction(lam, draws)
        mixed, hessian = _by_double_backward(graph, x, y, u)
        for radius in _radii(level.theta):
            gradients = [theta_gradient(level, level.theta, _moved(lam, u, s * radius)) for s in (1, -1)]
            of_theta = _slope(x, gradients, radius)
            of_lam = _slope(u, [lam_gradient(level, _moved(level.theta, x, s * radius)) for s in (1, -1)], radius)
            curved = _slope(y, [theta_gradient(level, _moved(level.theta, x, s * radius)) for s in (1, -1)], radius)
            noise = 100 * torch.finfo(x[0].dtype).eps * float(vectors.norm(gradients[0]) * vectors.norm(x)) / radius
            rows.append((of_theta, of_lam, mixed, curved, hessian, noise, radius))
    tolerance = DISAGREE if double else 0.05

    def worst(first: int, second: int) -> tuple[float, Any]:
        """The largest relative distance between two columns at the radius where it is least, and its row."""
        scale = max(max(abs(row[first]), abs(row[second] or 0.0)) for row in rows)
        off = {}
        for index, row in enumerate(rows):
            gap = 1.0 if row[second] is None else abs(row[first] - row[second])
            off[index] = (gap / scale if gap > row[5] else 0.0) if scale else 0.0
        pairs = [range(i, i + len(rows) // PAIRS) for i in range(0, len(rows), len(rows) // PAIRS)]
        best = [min(pair, key=lambda i: off[i]) for pair in pairs]
        index = max(best, key=lambda i: off[i])
        return off[index], rows[index]

    off_lam, at_lam = worst(0, 1)
    off_backward, at_backward = worst(0, 2)
    off_hessian, at_hessian = worst(3, 4)
    at = at_backward if off_backward > tolerance else at_lam
    return SecondDerivatives(
        at[0], at[1], at[2], (at_hessian[3], at_hessian[4]), off_lam, off_backward, off_hessian, tolerance
    )


class ByDifferences(Hypergradient):
    """-B H^-1 v with both by differences of first gradients; what stands in where double backward is wrong."""

    def __init__(self, solve: Solver, linearize: Literal["after", "before"], *, stop_gradient: bool) -> None:
        self.solve = solve
        self.stop_gradient = stop_gradient
        self.needs = Needs(linearize=linearize)

    def __call__(self, level: Level, v: Vector, carry: Carry | None) -> tuple[dict[str, Vector], Carry]:
        level = DifferencedLevel(level)
        x, start = self.solve(level, v, carry.solve if carry else None)
        lam = vectors.detach(level.flat_lam())
        if self.stop_gradient and sum(t.numel() for t in lam) <= LARGEST_CROSS:
            crossed = _entry_by_entry(level, x, lam)
        else:
            crossed = _difference(lambda theta: lam_gradient(level, theta), level.theta, x)
        return level.split_lam(vectors.negate(crossed)), Carry(DoubleBackward(), start)

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
    return vectors.detach(_gradient(level.loss(leaves, level.split_lam(lam)), leaves))


def lam_gradient(level: Level, theta: Vector) -> Vector:
    """d loss / d lam at this theta."""
    leaves = vectors.leaves(level.flat_lam())
    return vectors.detach(_gradient(level.loss(theta, level.split_lam(leaves)), leaves))


def _gradient(value: Tensor, leaves: Vector, *, create_graph: bool = False) -> Vector:
    if not value.requires_grad:
        return vectors.zeros_like(leaves)
    return vectors.filled(torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True), leaves)


def _gradient_graph(level: Level) -> tuple[Vector, Vector, Vector] | None:
    """(theta, lam, d loss / d theta as a graph over both); None where a kernel refuses."""
    theta, lam = vectors.leaves(level.theta), vectors.leaves(level.flat_lam())
    try:
        return theta, lam, _gradient(level.loss(theta, level.split_lam(lam)), theta, create_graph=True)
    except Unsupported:
        return None


def _by_double_backward(
    graph: tuple[Vector, Vector, Vector] | None, x: Vector, y: Vector, u: Vector
) -> tuple[float | None, float | None]:
    """(u'B x, y'H x)."""
    if graph is None:
        return None, None
    theta, lam, gradient = graph
    slope = vectors.inner(gradient, x)
    if not slope.requires_grad:
        return 0.0, 0.0
    try:
        pulled = torch.autograd.grad(slope, (*theta, *lam), retain_graph=True, allow_unused=True)
    except Unsupported:
        return None, None
    filled = vectors.filled(pulled, (*theta, *lam))
    return float(vectors.dot(u, filled[len(theta) :])), float(vectors.dot(y, filled[: len(theta)]))


def _entry_by_entry(level: Level, x: Vector, lam: Vector) -> Vector:
    """B x by one difference of the theta-gradient for every entry of lam: honours stop-gradients."""
    row = vectors.flat(lam)
    radius = _radii(level.theta)[0] * max(1.0, float(row.norm()))
    entries = []
    for index in range(len(row)):
        unit = torch.zeros_like(row)
        unit[index] = 1
        sides = [theta_gradient(level, level.theta, vectors.shaped(row + s * radius * unit, lam)) for s in (1, -1)]
        entries.append(_slope(x, sides, radius))
    return vectors.shaped(row.new_tensor(entries), lam)


def _difference(function: Callable[[Vector], Vector], point: Vector, direction: Vector) -> Vector:
    """The derivative of `function` along `direction`."""
    length = float(vectors.norm(direction))
    if not length:
        return vectors.zeros_like(function(point))
    eps = _radii(point)[0] * max(1.0, float(vectors.norm(point))) / length
    ahead, behind = (function(vectors.add(point, direction, alpha=s * eps)) for s in (1, -1))
    return vectors.scale(vectors.add(ahead, behind, alpha=-1.0), 0.5 / eps)


def _slope(x: Vector, sides: list[Vector], radius: float) -> float:
    return float(vectors.dot(x, vectors.add(sides[0], sides[1], alpha=-1.0))) / (2 * radius)


def _radii(like: Vector) -> tuple[float, ...]:
    return RADII.get(like[0].dtype, COARSE)


def _direction(like: Vector, draws: torch.Generator) -> Vector:
    """A random direction, as long as the point, or 1 where that is shorter."""
    x = tuple(torch.randn(t.shape, generator=draws, dtype=torch.float64).to(t) for t in like)
    return vectors.scale(x, max(1.0, float(vectors.norm(like))) / float(vectors.norm(x)))


def _moved(point: Vector, direction: Vector, step: float) -> Vector:
    return vectors.add(point, direction, alpha=step)
