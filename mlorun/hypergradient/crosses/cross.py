"""x to B x, where B = d2 loss / d lam d theta: the second of an implicit estimator's two choices."""

from __future__ import annotations

from abc import ABC, abstractmethod

from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class Cross(ABC):
    """Theta-shaped x to {name: lam-shaped B x}, every lam in one pass."""

    @abstractmethod
    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]: ...
