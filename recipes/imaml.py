"""Meta-learning with implicit gradients (iMAML, Rajeswaran et al. 2019, arXiv:1909.04630)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .few_shot import Classification, Points, Weights


class ProximalLearner(Classification):
    """Lower: each task's cross entropy, and half of `proximity` times the squared distance to the start. Equation 3.

    The distance keeps the inner problem's minimum near the start, and its Hessian H + proximity I positive definite,
    which conjugate gradients need: proximity must be above the most negative curvature of the cross entropy.
    """

    def __init__(self, *, proximity: float, **problem: Any) -> None:
        super().__init__(**problem)
        self.proximity = proximity

    def objective(self, weights: Weights, support: Points) -> Tensor:
        distances = [(mine - start).square().sum() for mine, start in zip(weights, self.start(), strict=True)]
        return super().objective(weights, support) + self.proximity / 2 * torch.stack(distances).sum()

    def initial_parameters(self) -> None:
        """The hypergradient is that of the minimum, which does not depend on where its search starts."""

    def on_inner_loop_start(self) -> None:
        super().on_inner_loop_start()
        self.restart()
