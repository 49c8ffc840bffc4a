"""Identity solve: the Hessian taken for the identity, or for 1 / lr."""

from __future__ import annotations

from typing import Any, Literal

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


class Identity(Solver):
    """x = v, or lr v with `scale: lr`: H taken for the identity (Luketina et al. 2016, arXiv:1511.06727).

    With `scale: lr` and the cross at the parameters before the last SGD step this is that step's exact
    hypergradient.
    """

    curvature = False

    def __init__(self, scale: float | Literal["lr"]) -> None:
        if isinstance(scale, str) and scale != "lr":
            raise ConfigError(f"scale is {scale!r}", where="scale", fix="a number, or lr")
        self.scale = scale

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        if self.scale == "lr":
            return vectors.scale_each(v, level.learning_rates), None
        return (v if self.scale == 1.0 else vectors.scale(v, float(self.scale))), None
