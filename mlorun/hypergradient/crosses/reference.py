"""Are second derivatives of a lower loss right? Products with them against differences of its first gradient.

A kernel may cut double backward off (`once_differentiable`), or have a wrong one, and nothing says so: the product is a
number like any other. First gradients are what training runs on. Their difference along a direction shows a wrong
product, if stop-gradients are held: these are wanted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.inner_loop import InnerLoop, LearnedOptions, RecordedUpdate, Values
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.recorded import PureUpdate, RecordedProblem
from mlorun.hypergradient.vectors import Vector

log = logging.getLogger("mlorun.hypergradient")

SEED = 20211
OFF_POINT = 1e-4  # in units of the parameters' norm: away from kinks that many networks start on
# in units of the parameters' norm, by turns until one agrees: first so small that hardly a ReLU switches in between
FINE_RADII = (1e-8, 1e-6, 1e-3)
COARSE_RADII = (1e-5, 1e-4, 1e-3, 1e-2)
ROUNDING = 100.0  # of a gradient, in units of its norm and the precision
CONSISTENT = 0.25  # differences that differ among themselves by more than this part of an error do not prove it


@dataclass(frozen=True)
class Bounds:
    """Relative errors that pass: of Hessian products, of exact crosses (one number against another), of crosses that
    are differences themselves."""

    hessian: float
    cross: float
    rough: float


FINE, COARSE = Bounds(1e-3, 1e-4, 1e-2), Bounds(0.05, 0.05, 0.05)


@dataclass(frozen=True)
class Moved:
    """hypergradient.recorded.RecordedProblem at another point and other lam."""

    problem: RecordedProblem
    point: Vector
    lam: Values

    @property
    def name(self) -> str:
        return self.problem.name

    @property
    def update(self) -> PureUpdate:
        return self.problem.update

    @property
    def learning_rates(self) -> tuple[Tensor, ...]:
        return self.problem.learning_rates

    @property
    def inner_loop(self) -> InnerLoop:
        return self.problem.inner_loop

    @property
    def tangents(self) -> Any:
        return self.problem.tangents

    def loss(self, values: Values) -> Tensor:
        return self.problem.loss({**self.lam, self.name: self.point, **values})

    def loss_of(self, update: RecordedUpdate, values: Values) -> Tensor:
        return self.problem.loss_of(update, {**self.lam, self.name: self.point, **values})

    def start(self, lam: Values) -> Vector | None:
        return self.problem.start(lam)

    def in_double(self) -> None:
        return None

    def learned_options(self, lam: Values) -> LearnedOptions:
        return self.problem.learned_options(lam)


class Reference:
    """Differences of one level's first gradient, a little off its point; in float64 where the loss runs in it.

    The directions are those of the call at hand and random ones together, so that a cut in a block of parameters shows
    which v does not touch; the random numbers are its own.
    """

    def __init__(self, level: Level, v: Vector) -> None:
        double = level.theta[0].dtype == torch.float64
        near = None if double else level.in_double()
        self._random = torch.Generator().manual_seed(SEED)
        self._fine = double or near is not None
        at = near or level
        theta = self._off(at.theta)
        lam = {name: vectors.leaves(self._off(part)) for name, part in at.lam.items()}
        self.level = at.moved(lambda problem: Moved(problem, theta, lam))
        x = self._mixed(tuple(t.to(like) for t, like in zip(v, theta, strict=True)))
        self._bounds = FINE if self._fine else COARSE
        self._direction: Vector | None = None
        self.x = vectors.zeros_like(x)
        try:
            # what has no gradient does not move: the row of an embedding that pads, whose derivative torch leaves out
            self.x = tuple(t * (g != 0) for t, g in zip(x, self._gradient(theta, {}), strict=True))
        except derivatives.Unsupported as failed:
            self._tells_nothing(failed)
        self._moves = vectors.norm(self.x).item() > 0

    def hessian_error(self) -> float:
        """The relative error of the level's Hessian product; 0.0 where it passes, or where differences tell nothing."""
        try:
            return self._hessian_error() if self._moves else 0.0
        except derivatives.Unsupported as failed:
            return self._tells_nothing(failed)

    def cross_error(self, cross: Cross, *, rough: bool = False) -> float:
        """The same of what `cross` gives, in one direction of lam. `rough`: it is a difference itself."""
        try:
            return self._cross_error(cross, rough) if self._moves and self.level.flat_lam() else 0.0
        except derivatives.Unsupported as failed:
            return self._tells_nothing(failed)

    def third_error(self) -> float:
        """The same of a third derivative in theta and lam, along the direction at hand and a random one."""
        try:
            return self._third_error() if self._moves else 0.0
        except derivatives.Unsupported as failed:
            return self._tells_nothing(failed)

    def _tells_nothing(self, failed: Exception) -> float:
        """For a loss that cannot be evaluated here: too large in float64, or not the same function twice."""
        log.info("%s: second derivatives could not be checked (%s)", self.level.name, str(failed).splitlines()[0])
        return 0.0

    def _hessian_error(self) -> float:
        leaves, gradient = self.level.gradient_graph()
        product = vectors.detach(derivatives.pull_back(gradient, leaves, self.x, retain_graph=True))
        theta = self.level.theta

        def slope(step: float) -> tuple[Vector, float]:
            gradient = self._gradient(vectors.add(theta, self.x, alpha=step), {})
            return gradient, vectors.norm(gradient).item()

        return self._error(product, slope, _size(theta) / vectors.norm(self.x).item(), self._bounds.hessian)

    def _cross_error(self, cross: Cross, rough: bool) -> float:
        product = self.product(cross)
        self._direction = self._direction or self._mixed(product)
        direction = self._direction
        flat, length = vectors.detach(self.level.flat_lam()), vectors.norm(self.x).item()

        def slope(step: float) -> tuple[Vector, float]:
            lam = self.level.split_lam(vectors.leaves(vectors.add(flat, direction, alpha=step)))
            gradient = self._gradient(self.level.theta, lam)
            return (vectors.dot(self.x, gradient).reshape(1),), length * vectors.norm(gradient).item()

        return self._error(
            (vectors.dot(direction, product).reshape(1),),
            slope,
            _size(flat) / vectors.norm(direction).item(),
            self._bounds.rough if rough else self._bounds.cross,
        )

    def _third_error(self) -> float:
        size = len(self.level.theta)
        at = (*vectors.detach(self.level.theta), *vectors.detach(self.level.flat_lam()))
        direction = (*self.x, *(self._unit(at[size:]) if at[size:] else ()))

        def second(values: Vector) -> tuple[Vector, Vector]:
            """The point as leaves, and d/d(point) of the slope along x as a graph."""
            leaves = vectors.leaves(values)
            theta, lam = leaves[:size], self.level.split_lam(leaves[size:])
            gradient = derivatives.gradient(self.level.held_loss(theta, lam), theta, create_graph=True)
            return leaves, derivatives.pull_back(gradient, leaves, self.x, create_graph=True)

        def slope(step: float) -> tuple[Vector, float]:
            moved = vectors.detach(second(vectors.add(at, direction, alpha=step))[1])
            return moved, vectors.norm(moved).item()

        leaves, products = second(at)
        third = vectors.detach(derivatives.pull_back(products, leaves, direction))
        return self._error(third, slope, _size(at) / vectors.norm(direction).item(), self._bounds.hessian)

    def product(self, cross: Cross) -> Vector:
        """B x, every lam in one row of tensors."""
        crossed = cross(self.level, self.x)
        return tuple(t.detach() for part in crossed.values() for t in part)

    def _gradient(self, theta: Vector, lam: Values) -> Vector:
        leaves = vectors.leaves(theta)
        return derivatives.gradient(self.level.held_loss(leaves, lam), leaves)

    def _error(
        self, product: Vector, slope: Callable[[float], tuple[Vector, float]], unit: float, bound: float
    ) -> float:
        """The relative error of `product` against differences of `slope`.

        slope   what is differentiated, that many steps off the point, and the norm that its rounding is measured by
        unit    the step at radius 1
        """
        eps = torch.finfo(product[0].dtype).eps
        length = vectors.norm(product).item()
        proved: list[float] = []
        for radius in FINE_RADII if self._fine else COARSE_RADII:
            differences: list[Vector] = []
            for part in (1.0, 0.5, 0.25):
                step = part * radius * unit
                (ahead, size), (behind, _) = slope(step), slope(-step)
                difference = vectors.scale(vectors.add(ahead, behind, alpha=-1.0), 0.5 / step)
                largest = max(length, vectors.norm(difference).item())
                if not ROUNDING * eps * size / step < largest < math.inf:
                    break  # nothing but rounding, or not finite
                if _distance(product, difference) <= bound * largest:
                    return 0.0
                differences.append(difference)
            if len(differences) < 3:
                continue
            off = min(_distance(product, each) for each in differences)
            spread = max(_distance(a, b) for a, b in pairwise(differences))
            if spread < CONSISTENT * off:
                proved.append(off / max(length, vectors.norm(differences[-1]).item()))
        return min(proved, default=0.0)

    def _off(self, x: Vector) -> Vector:
        if not x:
            return x
        return vectors.add(vectors.detach(x), self._unit(x), alpha=OFF_POINT * _size(x))

    def _mixed(self, x: Vector) -> Vector:
        """x / norm(x) and a random direction that does not point away from it."""
        r = self._unit(x)
        length = vectors.norm(x).item()
        if not 0 < length < math.inf:
            return r
        sign = 1.0 if vectors.dot(r, x).item() >= 0 else -1.0
        return vectors.add(vectors.scale(x, 1 / length), r, alpha=sign)

    def _unit(self, like: Vector) -> Vector:
        r = tuple(
            torch.randn(t.shape, generator=self._random, dtype=torch.float64).to(t.dtype).to(t.device) for t in like
        )
        return vectors.scale(r, 1 / vectors.norm(r).item())


def _distance(x: Vector, y: Vector) -> float:
    return vectors.norm(vectors.add(x, y, alpha=-1.0)).item()


def _size(x: Vector) -> float:
    return vectors.norm(vectors.detach(x)).item() or 1.0
