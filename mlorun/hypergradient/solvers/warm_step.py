"""A step towards H^-1 v a call, kept for the next: SOBA (arXiv:2201.13409) and AmIGO (arXiv:2111.14580)."""

from __future__ import annotations

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solve_watch import SolveWatch
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.solvers.spectrum import StepSize, check_step_size, scaling
from mlorun.hypergradient.vectors import Vector

DIVERGED = 100.0  # times the length of v: a residual of such a length is no lag behind a v that shrinks

# u, and what the next power iteration starts from
Carry = tuple[Vector, Vector | None]


class WarmStep(Solver):
    """u <- u - rho ((H + damping I) u - v), `steps` times from where the last call ended; x = u.

    rho       step size, below 2 / (largest eigenvalue of H). A number, `lr` (the lower optimizer's), or `auto`:
              1 / (largest absolute eigenvalue of H), by power iteration: 20 more Hessian products at the first call and
              2 at each later one
    steps     Hessian products a call: 1 is SOBA, more is AmIGO
    damping   added to the diagonal

    u starts from 0, so that early hypergradients are short. Once everything else stands still it converges to
    H^-1 v. u is the carry: a resumed run goes on from it. A residual that outgrows v is named in the log, once.
    """

    def __init__(self, rho: StepSize, steps: int, damping: float) -> None:
        check_step_size("rho", rho)
        at_least("steps", steps, 1)
        at_least("damping", damping, 0)
        self.rho = rho
        self.steps = steps
        self.damping = damping
        self._watch = SolveWatch(
            f"u of the warm-started solve diverges: norm(H u - v) is above {DIVERGED:g} norm(v)",
            "Its Hessian is indefinite (choose more damping, or minres)."
            if rho == "auto"
            else "rho is above 2 / (largest eigenvalue of the Hessian), or the Hessian is indefinite: "
            "choose a smaller one or rho: auto, or minres.",
        )

    def __call__(self, level: Level, v: Vector, carry: Carry | None) -> tuple[Vector, Carry]:
        u, start = (vectors.zeros_like(v), None) if carry is None else carry
        scaled, start = scaling(self.rho, level, start, v)
        for _ in range(self.steps):
            product = vectors.add(level.hvp(u), u, alpha=self.damping)
            residual = vectors.add(product, v, alpha=-1.0)
            u = vectors.add(u, scaled(residual), alpha=-1.0)
        self._watch.look_at_growth(level, vectors.scale(v, DIVERGED), residual)
        return u, (u, start)
