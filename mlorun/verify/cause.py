"""Why a difference of losses misses its bound: one cause, with its number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Carry, Implicit
from mlorun.hypergradient.sweep import Carries, Edges
from mlorun.verify.point import VerificationPoint, relative_error
from mlorun.verify.reference import Definition
from mlorun.verify.second_derivatives import SecondDerivatives

OTHER_RADII = (0.1, 0.01, 0.001, 10.0)  # times its own


def takes_differences(estimate: Hypergradient | None, carry: Any) -> bool:
    """Whether this estimator's cross, or what stands in for it, is a difference of losses."""
    if not isinstance(estimate, Implicit):
        return False
    return isinstance(carry.cross if isinstance(carry, Carry) else estimate.cross, CentralDifference)


def rounding(
    point: VerificationPoint,
    edge: tuple[str, str],
    definitions: Mapping[str, Definition],
    carries: Carries,
    wanted: Edges,
) -> str | None:
    """Whether the estimator itself, in float64, keeps the bound that it misses in the parameters' own precision."""
    if point.finest is point.views:
        return None
    own = point.engine.adjoint.estimate(edge[0])
    estimates = {name: each.estimate for name, each in definitions.items()} | {edge[0]: own}
    start = {**carries, **{name: carry for name, carry in point.carries.items() if name == edge[0]}}
    off = relative_error(point.reference(estimates, start)[edge], wanted[edge])
    return (
        f"rounding: in float64 the same estimator is off by {off:.0e} alone"
        if off <= definitions[edge[0]].bound
        else None
    )


def cause(
    point: VerificationPoint,
    edge: tuple[str, str],
    definitions: Mapping[str, Definition],
    carries: Carries,
    wanted: Edges,
    second: SecondDerivatives,
) -> str:
    """Of the edge's error, where a cross is a difference of losses.

    definitions, carries, wanted   of the references, as they were taken
    """
    node = edge[0]
    if second.stop_gradient:
        return (
            "something between the two problems is detached (detach, no_grad): along random directions the derivative "
            f"of its update is {second.orders.one:.4g}, that of its loss the other way round is "
            f"{second.orders.other:.4g}. "
            "A difference of the loss sees through stop-gradients; a hypergradient with an exact cross does not, such "
            "as t1t2"
        )
    own = point.engine.problems[node].hypergradient
    assert isinstance(own, Implicit)
    nested = own.needs.nested
    assert nested is not None
    bound = definitions[node].bound
    used = point.carries.get(node)
    cross = used.cross if isinstance(used, Carry) else own.cross
    assert isinstance(cross, CentralDifference)

    def off(factor: float, *, fine: bool) -> float:
        """The error of the same estimator at another radius."""
        difference = CentralDifference(factor * cross.radius, cross.relative)
        other = Implicit(own.solve, difference, own.needs.linearize, nested)
        estimates = {name: each.estimate for name, each in definitions.items()} | {node: other}
        start = {name: carry for name, carry in carries.items() if name != node}
        kept = point.carries.get(node)
        if isinstance(kept, Carry):
            start[node] = Carry(own.cross, kept.solve, kept.differences)  # packed as the estimator's own cross
        got = point.reference(estimates, start) if fine else point.estimate(estimates, start)
        return relative_error(got[edge], wanted[edge])

    radius = f"radius {cross.radius:g}"
    here = off(1.0, fine=True)
    if here <= bound and point.finest is not point.views:
        wider = off(10.0, fine=False)
        more = f"; at ten times the radius {wider:.0e} remain" if wider <= bound else ""
        return f"rounding: in float64 the same difference, at {radius}, is off by {here:.0e} alone{more}"
    others = {factor: off(factor, fine=True) for factor in OTHER_RADII}
    factor = min(others, key=lambda each: others[each])
    if others[factor] <= bound:
        better = f"radius {factor * cross.radius:g}"
        return f"the radius of the difference: at {radius} it is off by {here:.0e} even in float64, at {better} by " + (
            f"{others[factor]:.0e}"
        )
    return (
        f"neither rounding nor the radius: in float64 the difference is off by {here:.0e} at {radius}, and by "
        f"{others[factor]:.0e} at best at others; the loss may have kinks or jumps there"
    )
