"""One step towards H^-1 v a call, kept for the next: SOBA (arXiv:2201.13409) and AmIGO (arXiv:2111.14580)."""

from __future__ import annotations

from typing import Any

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least, positive
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


class WarmStep(Solver):
    """u <- u - rho (H u - v), `steps` times from where the last call ended; x = u.

    rho     step size, below 2 / (largest eigenvalue of H)
    steps   Hessian products a call: 1 is SOBA, more is AmIGO

    u starts from 0, so that early hypergradients are short. Once everything else stands still it converges to
    H^-1 v. u is the carry: a resumed run goes on from it.
    """

    def __init__(self, rho: float, steps: int) -> None:
        positive("rho", rho)
        at_least("steps", steps, 1)
        self.rho = rho
        self.steps = steps

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        u: Vector = vectors.zeros_like(v) if carry is None else carry
        for _ in range(self.steps):
            u = vectors.add(u, vectors.add(level.hvp(u), v, alpha=-1.0), alpha=-self.rho)
        return u, u
