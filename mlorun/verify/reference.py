"""What an estimator is held against: its own definition with exact derivatives, and the exact hypergradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from mlorun.hypergradient import vectors
from mlorun.hypergradient.cross import CentralDifference, DoubleBackward
from mlorun.hypergradient.exact import Exact
from mlorun.hypergradient.forward import Forward
from mlorun.hypergradient.implicit import Implicit
from mlorun.hypergradient.indefinite import Minres
from mlorun.hypergradient.level import Hypergradient, Level
from mlorun.hypergradient.solve import Identity, Solve
from mlorun.hypergradient.unrolled import Unrolled
from mlorun.hypergradient.vectors import Vector

LARGEST_DENSE = 1500  # parameters; above this MINRES stands in for the dense solve
MOST_ITERATIONS = 300
UNREACHED = 1e-3


@dataclass(frozen=True)
class Definition:
    """An estimator's own formula with exact derivatives, and how far from it float32 may stay."""

    estimate: Hypergradient
    what: str
    bound: float


def definition(estimate: Hypergradient) -> Definition:
    """Bounds: 1e-5 for one exact product, 1e-3 for what iterates, 1e-2 for what takes differences of losses."""
    if isinstance(estimate, Implicit):
        exact = Implicit(estimate.solve, DoubleBackward(), estimate.at)
        if isinstance(estimate.cross, CentralDifference):
            bound = 1e-2
        else:
            bound = 1e-5 if isinstance(estimate.solve, Identity) else 1e-3
        return Definition(exact, f"{type(estimate.solve).__name__} and double backward in float64", bound)
    if isinstance(estimate, Unrolled | Forward):
        return Definition(Unrolled(getattr(estimate.keeps, "steps", None), "iterates"), "reverse mode in float64", 1e-3)
    return Definition(estimate, "itself in float64", 1e-2)


class ExactOrFinest(Solve):
    """H^-1 v, by a dense factorization up to `largest_dense` parameters, else by MINRES. Remembers what it reached."""

    def __init__(self, largest_dense: int = LARGEST_DENSE, iterations: int = MOST_ITERATIONS) -> None:
        self._dense = Exact(0.0, largest_dense)
        self._minres = Minres(iterations, 0.0, 1e-12)
        self.largest_dense = largest_dense
        self.residual = math.nan
        self.dense = True

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        self.dense = sum(t.numel() for t in v) <= self.largest_dense
        solve: Solve = self._dense if self.dense else self._minres
        x, _ = solve(level, v, None)
        self.residual = float(vectors.norm(vectors.add(level.hvp(x), v, alpha=-1.0)) / vectors.norm(v))
        return x, None

    @property
    def said(self) -> str:
        """What it was."""
        how = "dense Hessian" if self.dense else f"MINRES, {MOST_ITERATIONS} iterations at most"
        said = f"{how}, float64, residual {self.residual:.0e}"
        if self.residual > UNREACHED:
            said += " (the Hessian is singular or badly conditioned here: the least-squares answer so far)"
        return said
