"""Central difference of the loss's gradient in lam, along x."""

from __future__ import annotations

from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.checks import positive
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class CentralDifference(Cross):
    """(dL/dlam(theta + eps x) - dL/dlam(theta - eps x)) / (2 eps) (DARTS, Liu et al. 2019, arXiv:1806.09055, eq. 8).

    radius     the length of the perturbation eps x: eps = radius / norm(x)
    relative   measure radius in units of norm(theta)

    A difference of the scalar loss cannot see a stop-gradient: with loss.detach() in the lower loss this is a
    different number from the derivative of the update. The error is O(radius^2) above, rounding / radius below.
    """

    def __init__(self, radius: float, relative: bool) -> None:
        positive("radius", radius)
        self.radius = radius
        self.relative = relative

    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]:
        lam = level.flat_lam()
        return level.split_lam(
            derivatives.central_difference(
                lambda theta: derivatives.gradient(level.loss(theta), lam), level.theta, x, self.length(level)
            )
        )

    def length(self, level: Level) -> float | Tensor:
        """Of the perturbation."""
        return self.radius * vectors.norm(level.theta) if self.relative else self.radius


class HeldCentralDifference(Cross):
    """The same with stop-gradients held at their values at theta, at a radius that the precision decides: right
    wherever the first gradient in lam is. One evaluation more.

    radius   in place of that one
    """

    def __init__(self, radius: float | Tensor | None = None) -> None:
        self.radius = radius

    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]:
        lam = level.flat_lam()

        def slope(theta: Vector) -> Vector:
            return derivatives.gradient(level.held_loss(vectors.leaves(theta)), lam)

        radius = derivatives.difference_radius(level.theta) if self.radius is None else self.radius
        return level.split_lam(derivatives.central_difference(slope, level.theta, x, radius))
