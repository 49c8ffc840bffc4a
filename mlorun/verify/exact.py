"""The solve behind the implicit function theorem's hypergradient, and how far from an optimum its point is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.exact import hessian
from mlorun.hypergradient.solvers.indefinite import Minres
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector

LARGEST_DENSE = 1500  # parameters; above this MINRES stands in for the dense solve
MOST_ITERATIONS = 300
UNREACHED = 1e-3
CUTOFF = 1e-10  # of the largest eigenvalue, below which one counts as 0


@dataclass(frozen=True)
class Optimality:
    """How far a lower problem is from its optimum, weight decay included.

    gradient    the norm of its gradient
    step        norm(H^-1 gradient) / norm(theta), Newton's step
    decrement   sqrt(gradient' H^-1 gradient), Newton's decrement; NaN where that is below 0
    lowest      the smallest eigenvalue of H over the largest in magnitude; NaN where it is not known
    """

    gradient: float
    step: float
    decrement: float
    lowest: float


class ExactOrFinest(Solver):
    """The least-squares x of least norm for H x = v: from the dense Hessian's eigenvalues up to `largest_dense`
    parameters, else by MINRES. Remembers what it reached, and how far from its optimum the level is."""

    def __init__(self, largest_dense: int = LARGEST_DENSE, iterations: int = MOST_ITERATIONS) -> None:
        self._minres = Minres(iterations, 0.0, 1e-12)
        self.largest_dense = largest_dense
        self.how = ""
        self.residual = math.nan
        self.optimality: Optimality | None = None

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        gradient = level.with_decay(level.gradient, vectors.detach(level.theta))
        lowest = math.nan
        if sum(t.numel() for t in v) <= self.largest_dense:
            values, basis = torch.linalg.eigh(hessian(level, v))
            x, newton = (self._dense(values, basis, right) for right in (v, gradient))
            lowest = float(values.min() / values.abs().max()) if values.abs().max() > 0 else math.nan
        else:
            x, newton = (self._minres(level, right, None)[0] for right in (v, gradient))
            self.how = f"{self._minres.iterations} steps of MINRES"
        self.residual = float(vectors.norm(vectors.add(level.hvp(x), v, alpha=-1.0)) / vectors.norm(v))
        square = float(vectors.dot(gradient, newton))
        self.optimality = Optimality(
            float(vectors.norm(gradient)),
            float(vectors.norm(newton)) / (float(vectors.norm(level.theta)) or 1.0),
            math.sqrt(square) if square >= 0 else math.nan,
            lowest,
        )
        return x, None

    def _dense(self, values: Tensor, basis: Tensor, v: Vector) -> Vector:
        kept = values.abs() > CUTOFF * values.abs().max()
        along = (basis.T @ vectors.flat(v).cpu().double())[kept] / values[kept]
        self.how = f"a dense Hessian of rank {int(kept.sum())} of {len(values)}"
        return vectors.shaped((basis[:, kept] @ along).to(v[0]), v)

    @property
    def reached(self) -> bool:
        """Whether x solves the system, rather than coming as near as there is time or range for."""
        return not self.residual > UNREACHED

    @property
    def summary(self) -> str:
        """What it was."""
        return f"{self.how}, residual {self.residual:.0e}"
