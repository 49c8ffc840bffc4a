"""What iterative solves in a Krylov space share: their options, and the damped Hessian product."""

from __future__ import annotations

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


class KrylovSolver(Solver):
    """At most `iterations` iterations; `damping` and `tolerance` mean what each solve says of them."""

    def __init__(self, iterations: int, damping: float, tolerance: float) -> None:
        at_least("iterations", iterations, 1)
        at_least("damping", damping, 0)
        at_least("tolerance", tolerance, 0)
        self.iterations = iterations
        self.damping = damping
        self.tolerance = tolerance

    def damped_product(self, level: Level, x: Vector) -> Vector:
        """(H + damping I) x."""
        product = level.hvp(x)
        return vectors.add(product, x, alpha=self.damping) if self.damping else product
