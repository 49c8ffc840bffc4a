"""Penalty methods: first-order derivatives only, at a second copy of the lower parameters that also lowers F."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.checks import at_least, one_of, positive, positive_or_lr
from mlorun.hypergradient.estimator import Hypergradient, Needs
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector

# where y and z are at the beginning of a call
Start = Literal["offset", "theta", "last"]


@dataclass(frozen=True)
class Copy:
    """What a penalty method keeps between calls: y, or its offset from z, and how many calls there were."""

    y: Vector
    count: int


class Penalty(Hypergradient):
    """What F2SA and BOME share: F is read, and y is kept."""

    needs = Needs(upper_loss=True)

    def pack(self, carry: Copy) -> dict[str, Any]:
        return {"y": carry.y, "count": carry.count}

    def unpack(self, packed: dict[str, Any]) -> Copy:
        return Copy(**packed)


class F2SA(Penalty):
    """gam (dL/dlam(y) - dL/dlam(z)) + dF/dlam(y) - dF/dlam(z), y = argmin of F + gam L, z = argmin of L
    (Kwon et al. 2023, arXiv:2301.10945). Off by O(1 / gam) once y and z are solved.

    gamma, growth   gam = gamma + growth * (calls so far)
    steps           of gradient descent a call: y on F / gam + L, z on L, on the same batch
    rate            their length; `lr` is the lower optimizer's
    start           of y and z at each call, theta being the problem's parameters. `offset`: z at theta, y as far from
                    theta as it ended from z at the call before. `theta`: both at theta. `last`: y where it ended at the
                    call before, and z is theta and takes no step here, as the paper's algorithm 1 does

    y - z is to be what F / gam makes of it. With `last` it is that only where the problem itself is trained by plain
    gradient descent of this rate and so many steps a call; under momentum, y falls behind, and the lag is multiplied
    by gam. The direct gradient dF/dlam is taken at theta; the difference dF/dlam(y) - dF/dlam(theta), added here,
    makes it dF/dlam(y).
    """

    def __init__(
        self, gamma: float, growth: float, steps: int, rate: float | Literal["lr"], start: Start = "offset"
    ) -> None:
        positive("gamma", gamma)
        at_least("growth", growth, 0)
        at_least("steps", steps, 1)
        positive_or_lr("rate", rate)
        one_of("start", start, get_args(Start))
        self.gamma = gamma
        self.growth = growth
        self.steps = steps
        self.rate = rate
        self.start = start

    def __call__(self, level: Level, v: Vector, carry: Copy | None) -> tuple[dict[str, Vector], Copy]:
        count = carry.count if carry else 0
        gamma = self.gamma + self.growth * count
        y = z = level.theta
        if carry and self.start == "last":
            y = carry.y
        elif carry and self.start == "offset":
            y = vectors.add(level.theta, carry.y)
        for _ in range(self.steps):
            on_f, _ = of_upper(level, y)
            on_l, _ = of_lower(level, y)
            y = descend(y, vectors.add(on_l, on_f, alpha=1 / gamma), self.rate, level)
            if self.start != "last":
                z = descend(z, of_lower(level, z)[0], self.rate, level)
        pulled = vectors.scale(vectors.add(of_lower(level, y)[1], of_lower(level, z)[1], alpha=-1.0), gamma)
        moved = vectors.add(of_upper(level, y)[1], of_upper(level, level.theta)[1], alpha=-1.0)
        kept = vectors.add(y, z, alpha=-1.0) if self.start == "offset" else y
        return level.split_lam(vectors.add(pulled, moved)), Copy(kept, count + 1)


class BOME(Penalty):
    """m (dL/dlam(y) - dL/dlam(z)) + dF/dlam(y) - dF/dlam(z), m by a barrier (Liu et al. 2022, arXiv:2209.08709).

    With q(lam, y) = L(lam, y) - L(lam, z): m = max(0, eta - <grad F, grad q> / norm(grad q)^2) over lam and y at once;
    and y <- y - rate (dF/dy + m dq/dy).

    eta     q is to fall at least as fast as eta norm(grad q)^2
    steps   of y a call, from where the call before ended
    rate    their length; `lr` is the lower optimizer's

    z is the problem's own theta, held constant. Exact where the whole program is stationary; away from there the
    multiplier trades F for q, and the result is no hypergradient of any one point.
    """

    def __init__(self, eta: float, steps: int, rate: float | Literal["lr"]) -> None:
        positive("eta", eta)
        at_least("steps", steps, 1)
        self.eta = eta
        self.steps = steps
        positive_or_lr("rate", rate)
        self.rate = rate

    def __call__(self, level: Level, v: Vector, carry: Copy | None) -> tuple[dict[str, Vector], Copy]:
        count = carry.count if carry else 0
        y = carry.y if carry else level.theta
        f_z, l_z = of_upper(level, level.theta)[1], of_lower(level, level.theta)[1]
        for _ in range(self.steps):
            (f_theta, _), (l_theta, _), m = self._barrier(level, y, l_z)
            y = descend(y, vectors.add(f_theta, l_theta, alpha=m), self.rate, level)
        (_, f_y), (_, l_y), m = self._barrier(level, y, l_z)
        pulled = vectors.scale(vectors.add(l_y, l_z, alpha=-1.0), m)
        moved = vectors.add(f_y, f_z, alpha=-1.0)
        return level.split_lam(vectors.add(pulled, moved)), Copy(y, count + 1)

    def _barrier(self, level: Level, y: Vector, l_z: Vector) -> tuple[Derivatives, Derivatives, Tensor]:
        """Derivatives of F and L at y, and the multiplier there; 0 where q has no slope."""
        of_f, of_l = of_upper(level, y), of_lower(level, y)
        grad_f = (*of_f[0], *of_f[1])
        grad_q = (*of_l[0], *vectors.add(of_l[1], l_z, alpha=-1.0))
        square = vectors.dot(grad_q, grad_q)
        m = self.eta - vectors.quotient(vectors.dot(grad_f, grad_q), square, square > 0)
        return of_f, of_l, torch.where(square > 0, m.clamp_min(0), torch.zeros_like(m))


# (in theta, in every lam in one vector)
Derivatives = tuple[Vector, Vector]


def of_upper(level: Level, theta: Vector) -> Derivatives:
    """The derivatives of F with theta put in. One gradient."""
    leaves = vectors.leaves(theta)
    return _derivatives(level.upper_loss(leaves), leaves, level.flat_lam())


def of_lower(level: Level, theta: Vector) -> Derivatives:
    """The derivatives of L, weight decay included, with theta put in. One gradient."""
    leaves = vectors.leaves(theta)
    on_theta, on_lam = _derivatives(level.loss(leaves), leaves, level.flat_lam())
    return level.with_decay(on_theta, vectors.detach(theta)), on_lam


def descend(y: Vector, slope: Vector, rate: float | Literal["lr"], level: Level) -> Vector:
    """y - rate slope."""
    scaled = vectors.scale_each(slope, level.learning_rates) if isinstance(rate, str) else vectors.scale(slope, rate)
    return vectors.add(y, scaled, alpha=-1.0)


def _derivatives(value: Tensor, theta: Vector, lam: Vector) -> Derivatives:
    grads = derivatives.gradient(value, (*theta, *lam))
    return grads[: len(theta)], grads[len(theta) :]
