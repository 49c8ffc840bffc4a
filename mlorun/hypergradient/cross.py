"""x to B x, where B = d2 loss / d lam d theta: the second of an implicit estimator's two choices.

Every lam in one pass. Each takes theta-shaped x and gives {name: lam-shaped}.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch.autograd import forward_ad

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.tangents import Tangents, load_rules
from mlorun.hypergradient.vectors import Vector


class Cross(ABC):
    """x to B x. `sees_stop_gradients`: whether a detach in the loss is honoured."""

    sees_stop_gradients: bool = True

    @abstractmethod
    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]: ...


class ForwardOverReverse(Cross):
    """The derivative of loss(., lam) along x by forward mode, then its gradient in lam by one backward pass.

    Exact; about one forward pass of duals and a backward pass through what lam feeds. Lorraine et al. 2020, eq. 4.
    """

    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]:
        load_rules()
        with forward_ad.dual_level():
            duals = tuple(forward_ad.make_dual(t, dx) for t, dx in zip(level.theta, x, strict=True))
            with Tangents():
                loss = level.loss(duals)
            slope = forward_ad.unpack_dual(loss).tangent
            lam = level.flat_lam()
            if slope is None or not slope.requires_grad:
                return level.split_lam(vectors.zeros_like(lam))
            grads = torch.autograd.grad(slope, lam, allow_unused=True)
        return level.split_lam(vectors.filled(grads, lam))


class DoubleBackward(Cross):
    """The gradient in lam of <d loss / d theta, x>. Exact; keeps the gradient's graph, which Hessian products share."""

    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]:
        _, gradient = level.gradient_graph()
        return level.split_lam(level.pull_back(gradient, level.flat_lam(), x))


class CentralDifference(Cross):
    """(dL/dlam(theta + eps x) - dL/dlam(theta - eps x)) / (2 eps) (DARTS, Liu et al. 2019, arXiv:1806.09055, eq. 8).

    radius     the length of the perturbation eps x: eps = radius / norm(x)
    relative   measure radius in units of norm(theta)

    A difference of the scalar loss cannot see a stop-gradient: with loss.detach() in the lower loss this is a
    different number from the derivative of the update. The error is O(radius^2) above, rounding / radius below.
    """

    sees_stop_gradients = False

    def __init__(self, radius: float, relative: bool) -> None:
        if not radius > 0:
            raise ConfigError("radius must be positive", where="radius", seen=f"{radius}")
        self.radius = radius
        self.relative = relative

    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]:
        length = vectors.norm(x)
        least = torch.finfo(length.dtype).tiny ** 0.5
        radius = self.radius * vectors.norm(level.theta) if self.relative else self.radius
        # x = 0 gives a perturbation of 0 and a difference of 0, not 0 / 0
        eps = radius / length.clamp_min(least)
        lam = level.flat_lam()
        shift = vectors.scale(x, eps)
        ahead, behind = (
            vectors.filled(self._slope(level, vectors.add(level.theta, shift, alpha=sign), lam), lam)
            for sign in (1.0, -1.0)
        )
        return level.split_lam(vectors.scale(vectors.add(ahead, behind, alpha=-1.0), 0.5 / eps))

    @staticmethod
    def _slope(level: Level, theta: Vector, lam: Vector) -> tuple[torch.Tensor | None, ...]:
        loss = level.loss(theta)
        if not loss.requires_grad:
            return (None,) * len(lam)
        return torch.autograd.grad(loss, lam, allow_unused=True)
