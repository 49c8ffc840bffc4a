"""Neumann solve: the inverse Hessian as a truncated power series."""

from __future__ import annotations

from typing import Any

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solve_watch import SolveWatch
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.solvers.spectrum import StepSize, check_step_size, scaling
from mlorun.hypergradient.vectors import Vector


class Neumann(Solver):
    """x = a sum over k = 0..K of (I - a H)^k v (Lorraine et al. 2020, arXiv:1911.02590, algorithm 3).

    terms        K; one Hessian product each
    step_size    a. A number, `lr` (the lower optimizer's), or `auto`: 1 / (largest absolute eigenvalue of H),
                 by power iteration: 20 more Hessian products at the first call and 2 at each later one

    In closed form H^-1 (I - (I - a H)^(K+1)) v. Converges for a < 2 / (largest eigenvalue of H) and H
    positive definite; a series that grows is named in the log, once.
    """

    def __init__(self, terms: int, step_size: StepSize) -> None:
        at_least("terms", terms, 0)
        check_step_size("step_size", step_size)
        self.terms = terms
        self.step_size = step_size
        self._watch = SolveWatch(
            "the series for the hypergradient grows from term to term",
            "Its Hessian is indefinite (choose minres or normal_cg)."
            if step_size == "auto"
            else "step_size is above 2 / (largest eigenvalue of the Hessian), or the Hessian is indefinite: "
            "choose a smaller one or step_size: auto, or minres.",
        )

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        scaled, carry = scaling(self.step_size, level, carry, v)
        term = v
        total = v
        for _ in range(self.terms):
            term = vectors.add(term, scaled(level.hvp(term)), alpha=-1.0)
            total = vectors.add(total, term)
        self._watch.look_at_growth(level, v, term)
        return scaled(total), carry
