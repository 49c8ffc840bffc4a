"""A difference quotient of running a whole inner loop again: what unrolling is the derivative of."""

from __future__ import annotations

from mlorun.hypergradient import vectors
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.sweep import Edges
from mlorun.verify.point import VerificationPoint

QUOTIENT_STEP = 1e-5


def loop_again(point: VerificationPoint, wanted: Edges) -> float | None:
    """How far, relatively, the slope of F along the hypergradient is from a difference quotient of whole reruns.

    In float64, by the updates alone, without their derivatives; None unless the one lower problem is differentiated
    through its whole inner loop, and steers nobody, so that its updates are its loss's alone.
    """
    node, upper = point.nodes[0], point.upper
    estimate = point.engine.problems[node].hypergradient
    if (
        len(point.nodes) > 1
        or point.engine.graph.nodes_on_paths(node)
        or not isinstance(estimate, Unrolled | Forward)
        or (node, upper) not in wanted
    ):
        return None
    trajectory = point.finest.view(node, (upper,)).trajectory()
    part = wanted[node, upper]
    slope = float(vectors.norm(part))
    if not trajectory.whole or (isinstance(estimate, Unrolled) and estimate.steps is not None) or not slope:
        return None

    def value(step: float) -> float:
        theta = trajectory.run({upper: vectors.scale(part, step / slope)})
        return float(point.finest.upper_loss(upper)({node: theta}).detach())

    return abs((value(QUOTIENT_STEP) - value(-QUOTIENT_STEP)) / (2 * QUOTIENT_STEP) - slope) / slope
