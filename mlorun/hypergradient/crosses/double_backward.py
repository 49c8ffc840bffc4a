"""Double backward: the gradient's own graph, pulled back to lam."""

from __future__ import annotations

from mlorun.hypergradient import derivatives
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class DoubleBackward(Cross):
    """The gradient in lam of <d loss / d theta, x>. Exact; keeps the gradient's graph, which Hessian products share."""

    def __call__(self, level: Level, x: Vector) -> dict[str, Vector]:
        _, gradient = level.gradient_graph()
        return level.split_lam(derivatives.pull_back(gradient, level.flat_lam(), x, retain_graph=True))
