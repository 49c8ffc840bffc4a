"""v to about H^-1 v, H the Hessian of a level's loss: the first of an implicit estimator's two choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class Solver(ABC):
    """v to x, about H^-1 v, and what the next call starts from. `curvature`: whether it takes Hessian products."""

    curvature: bool = True

    @abstractmethod
    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]: ...

    def require_size(self, name: str, theta: int) -> None:
        """Raise ConfigError where problem `name` has too many parameters for this solve."""
        return
