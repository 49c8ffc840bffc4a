"""Penalty methods: first-order derivatives only, at a second copy of the lower parameters that also lowers F."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.checks import at_least, positive, positive_or_lr
from mlorun.hypergradient.estimator import Hypergradient, Needs
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


@dataclass(frozen=True)
class Copy:
    """What a penalty method keeps between calls: y, or y - theta where y follows theta; and the number of calls."""

    y: Vector
    count: int


class Penalty(Hypergradient):
    """What F2SA and BOME share: F is read, and y is kept.

    steps    of gradient descent of y a call
    rate     their length; `lr` is the lower optimizer's
    follow   y starts a call as far from theta, the problem's own parameters, as the call before left it, and descends
             L - <dL/dtheta at theta, y> in place of L, which has its minimum at theta where L is convex.
             False: y starts where the call before left it, and descends L, as published

    y - theta is multiplied by the penalty, so it must be what F makes of it and nothing else. As published it is
    that only where theta, too, takes so many plain gradient steps of this rate a call. Elsewhere, under momentum for
    one, y falls behind theta, and the lag is multiplied as well.
    """

    needs = Needs(upper_loss=True)

    def __init__(self, steps: int, rate: float | Literal["lr"], follow: bool) -> None:
        at_least("steps", steps, 1)
        positive_or_lr("rate", rate)
        self.steps = steps
        self.rate = rate
        self.follow = follow

    def pack(self, carry: Copy) -> dict[str, Any]:
        return {"y": carry.y, "count": carry.count}

    def unpack(self, packed: dict[str, Any]) -> Copy:
        return Copy(**packed)

    def start(self, level: Level, carry: Copy | None) -> Vector:
        """y at the beginning of a call."""
        if carry is None:
            return level.theta
        return vectors.add(level.theta, carry.y) if self.follow else carry.y

    def keep(self, level: Level, y: Vector, carry: Copy | None) -> Copy:
        """For the next call."""
        kept = vectors.add(y, level.theta, alpha=-1.0) if self.follow else y
        return Copy(kept, (carry.count if carry else 0) + 1)

    def slope(self, at_y: Vector, at_theta: Vector) -> Vector:
        """dL/dtheta at y, as y descends it."""
        return vectors.add(at_y, at_theta, alpha=-1.0) if self.follow else at_y


class F2SA(Penalty):
    """gam (dL/dlam(y) - dL/dlam(z)) + dF/dlam(y) - dF/dlam(z), y = argmin of F + gam L, z = argmin of L
    (Kwon et al. 2023, arXiv:2301.10945, algorithm 1). Off by O(1 / gam) once y and z are solved.

    gamma, growth         gam = gamma + growth * (calls so far)
    steps, rate, follow   of gradient descent of y on F / gam + L a call

    z is the problem's own theta, y a second copy of it. The direct gradient dF/dlam is taken at z; the difference
    dF/dlam(y) - dF/dlam(z), added here, makes it dF/dlam(y).
    """

    def __init__(self, gamma: float, growth: float, steps: int, rate: float | Literal["lr"], follow: bool) -> None:
        positive("gamma", gamma)
        at_least("growth", growth, 0)
        super().__init__(steps, rate, follow)
        self.gamma = gamma
        self.growth = growth

    def __call__(self, level: Level, v: Vector, carry: Copy | None) -> tuple[dict[str, Vector], Copy]:
        gamma = self.gamma + self.growth * (carry.count if carry else 0)
        (_, f_z), (slope_z, l_z) = both(level, level.theta)
        y = self.start(level, carry)
        for _ in range(self.steps):
            (on_f, _), (on_l, _) = both(level, y)
            y = descend(y, vectors.add(self.slope(on_l, slope_z), on_f, alpha=1 / gamma), self.rate, level)
        (_, f_y), (_, l_y) = both(level, y)
        pulled = vectors.scale(vectors.add(l_y, l_z, alpha=-1.0), gamma)
        moved = vectors.add(f_y, f_z, alpha=-1.0)
        return level.split_lam(vectors.add(pulled, moved)), self.keep(level, y, carry)


class BOME(Penalty):
    """m (dL/dlam(y) - dL/dlam(z)) + dF/dlam(y) - dF/dlam(z), m by a barrier (Liu et al. 2022, arXiv:2209.08709).

    With q(lam, y) = L(lam, y) - L(lam, z): m = max(0, eta - <grad F, grad q> / norm(grad q)^2) over lam and y at once;
    and y <- y - rate (dF/dy + m dq/dy).

    eta                   q is to fall at least as fast as eta norm(grad q)^2
    steps, rate, follow   of y a call

    z is the problem's own theta, held constant. Exact where the whole program is stationary; away from there the
    multiplier trades F for q, and the result is no hypergradient of any one point.
    """

    def __init__(self, eta: float, steps: int, rate: float | Literal["lr"], follow: bool) -> None:
        positive("eta", eta)
        super().__init__(steps, rate, follow)
        self.eta = eta

    def __call__(self, level: Level, v: Vector, carry: Copy | None) -> tuple[dict[str, Vector], Copy]:
        (_, f_z), at_z = both(level, level.theta)
        y = self.start(level, carry)
        for _ in range(self.steps):
            (f_theta, _), (q_theta, _), m = self._barrier(level, y, at_z)
            y = descend(y, vectors.add(f_theta, q_theta, alpha=m), self.rate, level)
        (_, f_y), (_, q_y), m = self._barrier(level, y, at_z)
        moved = vectors.add(f_y, f_z, alpha=-1.0)
        return level.split_lam(vectors.add(moved, q_y, alpha=m)), self.keep(level, y, carry)

    def _barrier(self, level: Level, y: Vector, at_z: Derivatives) -> tuple[Derivatives, Derivatives, Tensor]:
        """Derivatives of F and q at y, and the multiplier there; 0 where q has no slope. `at_z`: derivatives of L."""
        of_f, (l_theta, l_lam) = both(level, y)
        of_q = self.slope(l_theta, at_z[0]), vectors.add(l_lam, at_z[1], alpha=-1.0)
        grad_f, grad_q = (*of_f[0], *of_f[1]), (*of_q[0], *of_q[1])
        square = vectors.dot(grad_q, grad_q)
        m = self.eta - vectors.quotient(vectors.dot(grad_f, grad_q), square, square > 0)
        return of_f, of_q, torch.where(square > 0, m.clamp_min(0), torch.zeros_like(m))


# (in theta, in every lam in one vector)
Derivatives = tuple[Vector, Vector]


def both(level: Level, theta: Vector) -> tuple[Derivatives, Derivatives]:
    """The derivatives of F and of L, weight decay included, with theta put in. One gradient each."""
    leaves = vectors.leaves(theta)
    of_f = _derivatives(level.upper_loss(leaves), leaves, level.flat_lam())
    on_theta, on_lam = _derivatives(level.loss(leaves), leaves, level.flat_lam())
    return of_f, (level.with_decay(on_theta, vectors.detach(theta)), on_lam)


def descend(y: Vector, slope: Vector, rate: float | Literal["lr"], level: Level) -> Vector:
    """y - rate slope."""
    scaled = vectors.scale_each(slope, level.learning_rates) if isinstance(rate, str) else vectors.scale(slope, rate)
    return vectors.add(y, scaled, alpha=-1.0)


def _derivatives(value: Tensor, theta: Vector, lam: Vector) -> Derivatives:
    grads = derivatives.gradient(value, (*theta, *lam))
    return grads[: len(theta)], grads[len(theta) :]
