"""What an estimator leaves out of the derivative of the solved program by its own definition, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mlorun.hypergradient import vectors
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.first_order import FirstOrder
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.penalty import BOME, F2SA
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector

SMALL_RESIDUAL = 1e-2


class Watched(Solver):
    """Another solver, and norm(H x - v) / norm(v) of its last solve. One Hessian product more."""

    def __init__(self, own: Solver) -> None:
        self.own = own
        self.curvature = own.curvature
        self.residual = math.nan

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        x, after = self.own(level, v, carry)
        left = vectors.add(level.hvp(vectors.detach(x)), v, alpha=-1.0)
        self.residual = float(vectors.norm(left) / vectors.norm(v))
        return x, after


def gap(estimate: Hypergradient, watched: Watched | None, below: Sequence[str], hyperparameters: int) -> str | None:
    """None where there is none, or none that can be named.

    watched           the solve of an implicit estimator, as it went
    below             problems that answer this one
    hyperparameters   how many are differentiated in
    """
    if below and estimate.needs.nested in ("own_loss", "gauss_newton") and isinstance(estimate, Implicit):
        names = " and ".join(below)
        if estimate.needs.nested == "own_loss":
            return f"nested: own_loss takes second derivatives of its own loss alone, as if {names} did not answer it"
        return f"nested: gauss_newton holds constant by how much {names} answer it"
    if isinstance(estimate, Implicit) and watched is not None:
        if watched.residual <= SMALL_RESIDUAL or math.isnan(watched.residual):
            return None
        kind = type(estimate.solve).__name__
        return f"its solve ({kind}) leaves norm(H x - v) = {watched.residual:.2g} norm(v) here: x is not H^-1 v"
    if isinstance(estimate, FirstOrder):
        return "it leaves out all that comes through lower problems"
    if isinstance(estimate, Unrolled | Forward):
        steps = estimate.steps if isinstance(estimate, Unrolled) else None
        which = "the steps" if steps is None else f"the last {steps} steps"
        return f"it differentiates {which} of the inner loop, however far they come, and not the optimum"
    if isinstance(estimate, UpdateMap):
        return f"it takes the last update for all updates, {estimate.iterations} of them, and not the optimum"
    if isinstance(estimate, Evolution):
        spread = math.sqrt((hyperparameters + 1) / estimate.samples)
        return (
            f"{estimate.samples} draws for {hyperparameters} hyperparameters scatter by about {spread:.2g} of its "
            f"length, and sigma {estimate.sigma:g} blurs the upper loss"
        )
    if isinstance(estimate, F2SA):
        return "its penalty leaves an error of the order of 1 / gamma, and y takes few steps a call"
    if isinstance(estimate, BOME):
        return "its multiplier trades the upper loss for the lower one: it is exact where both are stationary alone"
    return None
