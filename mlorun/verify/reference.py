"""What an estimator is held against: its own definition with exact derivatives, and the exact hypergradient."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.exact import hessian
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.indefinite import Minres
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector

LARGEST_DENSE = 1500  # parameters; above this MINRES stands in for the dense solve
MOST_ITERATIONS = 300
UNREACHED = 1e-3
CUTOFF = 1e-10  # of the largest eigenvalue, below which one counts as 0


@dataclass(frozen=True)
class Definition:
    """An estimator's own formula with exact derivatives, and how far from it float32 may stay."""

    estimate: Hypergradient
    what: str
    bound: float
    product: bool = False  # one exact product, by other means than the estimator's


def definition(estimate: Hypergradient) -> Definition:
    """Bounds: 1e-5 for one exact product (more where rounding costs double backward more), 1e-3 for unrolled updates,
    1e-2 for solves and for differences of losses."""
    if isinstance(estimate, Implicit):
        assert estimate.needs.nested is not None
        exact = Implicit(estimate.solve, DoubleBackward(), estimate.needs.linearize, estimate.needs.nested)
        if isinstance(estimate.cross, CentralDifference):
            bound = 1e-2
        else:
            bound = 1e-5 if isinstance(estimate.solve, Identity) else 1e-2
        product = isinstance(estimate.solve, Identity) and isinstance(estimate.cross, ForwardOverReverse)
        return Definition(exact, f"{type(estimate.solve).__name__} and double backward", bound, product)
    if isinstance(estimate, Unrolled | Forward):
        return Definition(
            Unrolled(estimate.steps if isinstance(estimate, Unrolled) else None, "iterates"),
            "reverse mode",
            1e-3,
        )
    return Definition(estimate, "itself, so that rounding is seen and nothing else", 1e-2)


class ExactOrFinest(Solver):
    """The least-squares x of least norm for H x = v: from the dense Hessian's eigenvalues up to `largest_dense`
    parameters, else by MINRES. Remembers what it reached."""

    def __init__(self, largest_dense: int = LARGEST_DENSE, iterations: int = MOST_ITERATIONS) -> None:
        self._minres = Minres(iterations, 0.0, 1e-12)
        self.largest_dense = largest_dense
        self.how = ""
        self.residual = math.nan

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        if sum(t.numel() for t in v) <= self.largest_dense:
            x = self._dense(level, v)
        else:
            x, _ = self._minres(level, v, None)
            self.how = f"MINRES, {self._minres.iterations} iterations at most"
        self.residual = float(vectors.norm(vectors.add(level.hvp(x), v, alpha=-1.0)) / vectors.norm(v))
        return x, None

    def _dense(self, level: Level, v: Vector) -> Vector:
        values, basis = torch.linalg.eigh(hessian(level, v))
        kept = values.abs() > CUTOFF * values.abs().max()
        along = (basis.T @ vectors.flat(v).cpu().double())[kept] / values[kept]
        self.how = f"dense Hessian of rank {int(kept.sum())} of {len(values)}"
        return vectors.shaped((basis[:, kept] @ along).to(v[0]), v)

    @property
    def reached(self) -> bool:
        """Whether x solves the system, rather than coming as near as there is time or range for."""
        return not self.residual > UNREACHED

    @property
    def summary(self) -> str:
        """What it was."""
        summary = f"{self.how}, residual {self.residual:.0e}"
        if not self.reached:
            summary += (
                " (v lies partly where the Hessian is flat, or the solve is unfinished: the least-squares answer)"
            )
        return summary
