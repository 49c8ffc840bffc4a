"""Forward over reverse: one dual pass and one backward pass."""

from __future__ import annotations

from mlorun.hypergradient import derivatives
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class ForwardOverReverse(Cross):
    """The derivative of loss(., lam) along x by forward mode, then its gradient in lam by one backward pass.

    Exact; about one forward pass of duals and a backward pass through what lam feeds. Lorraine et al. 2020, eq. 4.
    """

    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]:
        return level.split_lam(derivatives.mixed_product(level.loss, level.theta, x, level.flat_lam()))
