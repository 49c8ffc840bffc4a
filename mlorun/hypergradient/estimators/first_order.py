"""First order: the upper problem's own derivative alone; what lower optima answer is left out."""

from __future__ import annotations

from typing import Any

from mlorun.hypergradient import vectors
from mlorun.hypergradient.estimator import EVERY_CHANNEL, Hypergradient, Needs
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class FirstOrder(Hypergradient):
    """g = dF/dlam: nothing flows through this problem (first-order DARTS, Liu et al. 2019, arXiv:1806.09055)."""

    needs = Needs(channels=EVERY_CHANNEL, nested="own_loss", answers="constant")

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], None]:
        return {name: vectors.zeros_like(part) for name, part in level.lam.items()}, None
