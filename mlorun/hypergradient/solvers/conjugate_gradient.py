"""Conjugate gradients, for a Hessian that is positive definite."""

from __future__ import annotations

from typing import Any

import torch

from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.krylov import KrylovSolver
from mlorun.hypergradient.solvers.solve_watch import SolveWatch
from mlorun.hypergradient.vectors import Vector


class ConjugateGradient(KrylovSolver):
    """(H + damping I) x = v by conjugate gradients (arXiv:1602.02355; iMAML, arXiv:1909.04630).

    iterations   K; one Hessian product each
    damping      added to the diagonal
    tolerance    stop at norm(residual) <= tolerance norm(v)
    warm_start   start from the previous solution rather than from 0

    Stops early, without waiting for the device, where the residual has vanished or the curvature p'Hp is not
    positive: from there on the step length is 0, so x stays the last good iterate, which is the start in the first
    direction. The log names that once.
    """

    def __init__(self, iterations: int, damping: float, tolerance: float, warm_start: bool) -> None:
        super().__init__(iterations, damping, tolerance)
        self.warm_start = warm_start
        self._watch = SolveWatch(
            "its Hessian is not positive definite: conjugate gradients stopped early, and the hypergradient through it "
            "is 0 where that was the first direction",
            "Choose minres or normal_cg, or more damping.",
        )

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        if self.warm_start and carry is not None:
            x: Vector = carry
            residual = vectors.add(v, self.damped_product(level, x), alpha=-1.0)
        else:
            x = vectors.zeros_like(v)
            residual = v
        direction = residual
        square = vectors.dot(residual, residual)
        enough = (self.tolerance**2) * vectors.dot(v, v)
        going = square > enough
        taken = torch.zeros_like(square)
        negative = torch.zeros_like(going)
        for _ in range(self.iterations):
            taken = taken + going
            product = self.damped_product(level, direction)
            curvature = vectors.dot(direction, product)
            negative = negative | (going & (curvature <= 0))
            going = going & (curvature > 0)
            length = vectors.quotient(square, curvature, going)
            x = vectors.add(x, direction, alpha=length)
            residual = vectors.add(residual, product, alpha=-length)
            fresh = vectors.dot(residual, residual)
            going = going & (fresh > enough)
            direction = vectors.add(residual, direction, alpha=vectors.quotient(fresh, square, going))
            square = fresh
            if square.device.type == "cpu" and not going:
                break  # free to ask on the CPU; elsewhere it would wait for the device
        self._watch.look(level, negative)
        if level.report is not None:
            level.report("iterations", taken)
        return x, x if self.warm_start else None
