"""Neumann solve: the inverse Hessian as a truncated power series."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least, positive
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.solvers.spectrum import DivergenceWatch, largest_eigenvalue, start_vector
from mlorun.hypergradient.vectors import Vector


class Neumann(Solver):
    """x = a sum over k = 0..K of (I - a H)^k v (Lorraine et al. 2020, arXiv:1911.02590, algorithm 3).

    terms        K; one Hessian product each
    step_size    a. A number, `lr` (the lower optimizer's), or `auto`: 1 / (largest absolute eigenvalue of H),
                 by power iteration: 20 more Hessian products at the first call and 2 at each later one

    In closed form H^-1 (I - (I - a H)^(K+1)) v. Converges for a < 2 / (largest eigenvalue of H) and H
    positive definite; a series that grows is named in the log, once.
    """

    def __init__(self, terms: int, step_size: float | Literal["lr", "auto"]) -> None:
        at_least("terms", terms, 0)
        if isinstance(step_size, str):
            if step_size not in ("lr", "auto"):
                raise ConfigError(f"step_size is {step_size!r}", where="step_size", fix="a number, lr or auto")
        else:
            positive("step_size", step_size)
        self.terms = terms
        self.step_size = step_size
        self._watch = DivergenceWatch(
            "Its Hessian is indefinite (choose minres or normal_cg)."
            if step_size == "auto"
            else "step_size is above 2 / (largest eigenvalue of the Hessian), or the Hessian is indefinite: "
            "choose a smaller one or step_size: auto, or minres."
        )

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        scaled, carry = self._scaling(level, v, carry)
        term = v
        total = v
        for _ in range(self.terms):
            term = vectors.add(term, scaled(level.hvp(term)), alpha=-1.0)
            total = vectors.add(total, term)
        self._watch.look(level, v, term)
        return scaled(total), carry

    def _scaling(self, level: Level, v: Vector, carry: Any) -> tuple[Callable[[Vector], Vector], Any]:
        """x to a x, and the vector that the next power iteration starts from."""
        if self.step_size == "lr":
            rates = level.learning_rates
            return lambda x: vectors.scale_each(x, rates), None
        if self.step_size == "auto":
            start, iterations = (start_vector(v), 20) if carry is None else (carry, 2)
            size, carry = largest_eigenvalue(level, start, iterations)
            # a Hessian of 0 has no scale of its own
            step = torch.where(size > 0, vectors.quotient(torch.ones_like(size), size, size > 0), 1.0)
            return lambda x: vectors.scale(x, step), carry
        number = float(self.step_size)
        return lambda x: vectors.scale(x, number), None
