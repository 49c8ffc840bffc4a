"""What an estimator is held against: its own definition with exact derivatives, by other means than its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlorun.core.program.problem import Problem
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient, Nested
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.penalty import BOME, F2SA
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.verify.differences import ByDifferences
from mlorun.verify.gap import Watched
from mlorun.verify.second_derivatives import SecondDerivatives
from mlorun.verify.written_out import EvolutionWrittenOut, PenaltyWrittenOut, UpdateMapWrittenOut


@dataclass(frozen=True)
class Definition:
    """An estimator's own formula with exact derivatives, and how far from it float32 may stay."""

    estimate: Hypergradient
    what: str
    bound: float
    product: bool = False  # one exact product, by other means than the estimator's
    solve: Watched | None = None  # of an implicit estimator, as it went


def definition(problem: Problem, second: SecondDerivatives) -> Definition:
    """Bounds: 1e-5 for one exact product (more where rounding costs double backward more), 1e-3 for updates that are
    differentiated, 1e-2 for solves, penalties and differences of losses.

    second   of the problem's loss: differences of gradients stand in where its double backward is wrong
    """
    estimate = problem.hypergradient
    assert estimate is not None
    if isinstance(estimate, Implicit):
        assert estimate.needs.nested is not None
        watched = Watched(estimate.solve)
        exact = implicit(watched, estimate.needs.linearize, estimate.needs.nested, second)
        solve = type(estimate.solve).__name__
        # where double backward is wrong, differences stand in for an exact cross
        product_alone = isinstance(estimate.solve, Identity) and not isinstance(estimate.cross, CentralDifference)
        bound = 1e-5 if product_alone and not second.backward_is_wrong else 1e-2
        if second.backward_is_wrong:
            return Definition(exact, f"{solve} and differences of lower gradients", bound, solve=watched)
        product = isinstance(estimate.solve, Identity) and isinstance(estimate.cross, ForwardOverReverse)
        return Definition(exact, f"{solve} and double backward", bound, product, watched)
    if isinstance(estimate, Unrolled | Forward):
        steps = estimate.steps if isinstance(estimate, Unrolled) else None
        return Definition(Unrolled(steps, "iterates"), "reverse mode", 1e-3)
    if isinstance(estimate, UpdateMap):
        what = "the last update by torch's own optimizer, pulled back by autograd"
        return Definition(UpdateMapWrittenOut(estimate, problem.update), what, 1e-3)
    if isinstance(estimate, F2SA | BOME):
        return Definition(PenaltyWrittenOut(estimate), "its formula as one number, differentiated by autograd", 1e-2)
    if isinstance(estimate, Evolution):
        what = "the same draws, its inner loops run by torch's own optimizer"
        return Definition(EvolutionWrittenOut(estimate, problem.update), what, 1e-2)
    return Definition(estimate, "itself, so that rounding is seen and nothing else", 1e-2)


def implicit(
    solve: Solver, linearize: Literal["after", "before"], nested: Nested, second: SecondDerivatives
) -> Hypergradient:
    """-B H^-1 v with this solve, by exact second derivatives."""
    if second.backward_is_wrong:
        return ByDifferences(solve, linearize, nested, stop_gradient=second.stop_gradient)
    return Implicit(solve, DoubleBackward(), linearize, nested)
