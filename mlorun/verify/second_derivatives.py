"""Whether second derivatives by autograd are what the gradient says: each in two ways, along random directions.

hypergradient.crosses.reference asks the same at a run's first hypergradient, and its answer is part of what is judged
here: so this shares nothing with it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mlorun.hypergradient import vectors
from mlorun.hypergradient.derivatives import Unsupported
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.autograd import gradient
from mlorun.verify.differences import lam_gradient, radii, slope, theta_gradient

DISAGREE = 1e-3  # relative, in float64, above which two ways to one second derivative are two numbers
COARSE_DISAGREE = 0.05  # the same in lower precision
PAIRS = 3  # of random directions that are tried


@dataclass(frozen=True)
class Pair:
    """Two ways to one number, and their distance over the largest such number that was seen."""

    one: float
    other: float
    off: float

    def differ(self, tolerance: float) -> bool:
        return self.off > tolerance


@dataclass(frozen=True)
class SecondDerivatives:
    """Derivatives of one level's loss along random directions x, y in theta and u in lam, each in two ways.

    slope      of the loss by its gradient, by a difference of its value: they differ where the loss detaches something
    orders     the theta-gradient along u, the lam-gradient along x, by differences: the derivative of the update, and
               what a difference of the loss is an estimate of
    mixed      the theta-gradient along u by a difference, by double backward
    hessian    the theta-gradient along x by a difference, by double backward
    symmetry   y'H x and x'H y by double backward
    missing    a kernel has no double backward: `mixed`, `hessian` and `symmetry` are NaN there
    """

    slope: Pair
    orders: Pair
    mixed: Pair
    hessian: Pair
    symmetry: Pair
    missing: bool
    tolerance: float

    @property
    def stop_gradient(self) -> bool:
        """Whether the order of differentiation matters: something between lam and theta is detached."""
        return self.orders.differ(self.tolerance)

    @property
    def moving_detached(self) -> bool:
        """Whether the loss detaches something that depends on theta: its updates settle by another matrix than H."""
        return not self.backward_is_wrong and self.hessian.differ(self.tolerance)

    @property
    def backward_is_wrong(self) -> bool:
        """Whether second derivatives by autograd are not those of the loss's gradient.

        Where something is detached, double backward holds it constant and a difference does not, so that the two
        differ by right; but a Hessian is symmetric even then.
        """
        if self.missing or self.symmetry.differ(self.tolerance):
            return True
        if self.slope.differ(self.tolerance):
            return self.mixed.other == 0 and self.mixed.one != 0
        return self.mixed.differ(self.tolerance) or self.hessian.differ(self.tolerance)

    @property
    def fault(self) -> str:
        """What double backward does, in numbers."""
        if self.missing:
            return "a kernel of its loss has no double backward: differences of lower gradients stand in for it"
        if self.mixed.differ(self.tolerance):
            pair, what = self.mixed, "d2L / dlam dtheta"
        elif self.hessian.differ(self.tolerance):
            pair, what = self.hessian, "its Hessian"
        else:
            one, other = self.symmetry.one, self.symmetry.other
            return (
                "a kernel of its loss has a wrong double backward: its Hessian is not symmetric, "
                f"{one:.4g} one way and {other:.4g} the other along random directions"
            )
        fault = "cuts second derivatives off" if pair.other == 0 else "has a wrong double backward"
        return (
            f"a kernel of its loss {fault}: along random directions a difference of the lower gradient gives "
            f"{pair.one:.4g} for {what}, double backward {pair.other:.4g}; what is right here is the difference"
        )


def second_derivatives(level: Level) -> SecondDerivatives:
    """Compare the ways to the derivatives of one level's loss. About 60 evaluations."""
    draws = torch.Generator().manual_seed(0)
    lam = vectors.detach(level.flat_lam())
    graph = _gradient_graph(level)
    gradient_of_lam = lam_gradient(level, level.theta)
    gradient_of_theta = theta_gradient(level, level.theta, lam)
    slopes, orders, mixed, hessian, symmetry = (_Compared() for _ in range(5))
    missing = graph is None
    for _ in range(PAIRS):
        x, y = (_direction(level.theta, draws) for _ in range(2))
        u = _direction(lam, draws) if lam else ()
        backward = None if graph is None else _by_double_backward(graph, x, y, u)
        across = None if graph is None else _by_double_backward(graph, y, x, u)
        missing = missing or backward is None
        by_gradient = float(vectors.dot(gradient_of_theta, x)) + _dot(gradient_of_lam, u)
        for radius in radii(level.theta):
            sides = [(_moved(level.theta, x, s * radius), _moved(lam, u, s * radius)) for s in (1, -1)]
            both = [float(level.loss(theta, level.split_lam(at)).detach()) for theta, at in sides]
            of_lam = [lam_gradient(level, theta) for theta, _ in sides]
            by_theta = [theta_gradient(level, theta, lam) for theta, _ in sides]
            by_lam = [theta_gradient(level, level.theta, at) for _, at in sides]
            eps = 100 * torch.finfo(x[0].dtype).eps / radius
            noise = eps * float(vectors.norm(gradient_of_theta) * vectors.norm(x))
            slopes.add(by_gradient, (both[0] - both[1]) / (2 * radius), eps * abs(both[0]))
            of_theta = slope(x, by_lam, radius)
            orders.add(of_theta, slope(u, of_lam, radius) if lam else of_theta, noise)
            if backward is not None and across is not None:
                mixed.add(of_theta, backward[0], noise)
                hessian.add(slope(y, by_theta, radius), backward[1], noise)
                symmetry.add(backward[1], across[1], noise)
        for each in (slopes, orders, mixed, hessian, symmetry):
            each.close()
    tolerance = DISAGREE if level.theta[0].dtype == torch.float64 else COARSE_DISAGREE
    return SecondDerivatives(
        slopes.worst(), orders.worst(), mixed.worst(), hessian.worst(), symmetry.worst(), missing, tolerance
    )


class _Compared:
    """Two ways to a number along several directions, each at several radii, of which a kink may spoil one."""

    def __init__(self) -> None:
        self._open: list[tuple[float, float, float]] = []
        self._best: list[tuple[float, float, float]] = []
        self._scale = 0.0

    def add(self, one: float, other: float, noise: float) -> None:
        gap = abs(one - other)
        self._open.append((gap if gap > noise else 0.0, one, other))
        self._scale = max(self._scale, abs(one), abs(other))

    def close(self) -> None:
        """No more radii of this direction."""
        if self._open:
            self._best.append(min(self._open))
            self._open = []

    def worst(self) -> Pair:
        if not self._best:
            return Pair(math.nan, math.nan, 0.0)
        gap, one, other = max(self._best)
        return Pair(one, other, gap / self._scale if self._scale else 0.0)


def _gradient_graph(level: Level) -> tuple[Vector, Vector, Vector] | None:
    """(theta, lam, d loss / d theta as a graph over both); None where a kernel refuses."""
    theta, lam = vectors.leaves(level.theta), vectors.leaves(level.flat_lam())
    try:
        return theta, lam, gradient(level.loss(theta, level.split_lam(lam)), theta, create_graph=True)
    except Unsupported:
        return None


def _by_double_backward(
    graph: tuple[Vector, Vector, Vector], x: Vector, y: Vector, u: Vector
) -> tuple[float, float] | None:
    """(u'B x, y'H x); None where a kernel refuses."""
    theta, lam, slopes = graph
    along = vectors.inner(slopes, x)
    if not along.requires_grad:
        return 0.0, 0.0
    try:
        filled = gradient(along, (*theta, *lam), retain_graph=True)
    except Unsupported:
        return None
    return _dot(u, filled[len(theta) :]), float(vectors.dot(y, filled[: len(theta)]))


def _direction(like: Vector, draws: torch.Generator) -> Vector:
    """A random direction, as long as the point, or 1 where that is shorter."""
    x = tuple(torch.randn(t.shape, generator=draws, dtype=torch.float64).to(t) for t in like)
    return vectors.scale(x, max(1.0, float(vectors.norm(like))) / float(vectors.norm(x)))


def _moved(point: Vector, direction: Vector, step: float) -> Vector:
    return vectors.add(point, direction, alpha=step) if point else ()


def _dot(x: Vector, y: Vector) -> float:
    return float(vectors.dot(x, y)) if x else 0.0
