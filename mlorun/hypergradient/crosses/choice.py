"""Which cross an edge really uses: decided once, at its first hypergradient, against an exact reference.

What can go wrong with a cross shows in a comparison with double backward on the spot: a kernel without forward AD,
or with a wrong one, and a central difference, which sees through `detach`. Double backward has a trap of its own: a
`once_differentiable` kernel cuts it off in silence, so that it gives zero.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.derivatives import Unsupported
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector

log = logging.getLogger("mlorun.hypergradient")

LOWEST_COSINE = 0.999
LARGEST_ERROR = 1e-2
FALLBACK_RADIUS = 0.01

# what may stand in for a cross, by the name of its type
STAND_INS: Mapping[str, Callable[[], Cross]] = {
    "DoubleBackward": DoubleBackward,
    "CentralDifference": lambda: CentralDifference(FALLBACK_RADIUS, relative=False),
}


@dataclass(frozen=True)
class Agreement:
    """How two lam-shaped results compare."""

    cosine: float
    relative_error: float


def compare(got: dict[str, Vector], reference: dict[str, Vector]) -> Agreement | None:
    """Cosine and relative error over every lam together; None where the reference is zero, and tells nothing."""
    x = tuple(t for part in got.values() for t in part)
    y = tuple(t for part in reference.values() for t in part)
    length, other = vectors.norm(x).item(), vectors.norm(y).item()
    if other == 0:
        return None
    if length == 0:
        return Agreement(0.0, 1.0)
    error = vectors.norm(vectors.add(x, y, alpha=-1.0)).item() / other
    return Agreement(vectors.dot(x, y).item() / (length * other), error)


def choose(cross: Cross, level: Level, x: Vector) -> Cross:
    """`cross`, or what stands in for it on this level. Logs its reason, once."""
    if level.is_nested:
        return DoubleBackward()
    reference = _attempt(DoubleBackward(), level, x)
    got = _attempt(cross, level, x)
    edge = f"{', '.join(level.lam)} <- {level.name}"
    if isinstance(got, Exception):
        if isinstance(reference, Exception) or _is_cut_off(reference, level, x):
            stand_in = STAND_INS["CentralDifference"]()
            if isinstance(cross, CentralDifference):
                raise got
            why = _first_line(reference) if isinstance(reference, Exception) else "cut off by a kernel, zero"
            what = f"central difference, radius {FALLBACK_RADIUS} (double backward: {why})"
        else:
            stand_in, what = DoubleBackward(), "double backward"
        log.warning(
            "%s: %s is not available for this loss (%s); using %s",
            edge,
            _title(cross),
            _first_line(got),
            what,
        )
        return stand_in
    if isinstance(reference, Exception):
        return cross
    agreement = compare(got, reference)
    if agreement is None:
        return cross
    if isinstance(cross, ForwardOverReverse) and agreement.relative_error > LARGEST_ERROR:
        log.warning(
            "%s: forward over reverse is %.0f %% off double backward: the loss changes from evaluation to evaluation "
            "(a generator or a state of its own?), or the forward derivative of some kernel is not that of its "
            "backward pass. Using double backward",
            edge,
            100 * agreement.relative_error,
        )
        return DoubleBackward()
    if not cross.sees_stop_gradients and agreement.cosine < LOWEST_COSINE:
        log.warning(
            "%s: the central difference is %.0f %% off the exact product (cosine %.3f). A difference of the loss sees "
            "through stop-gradients: with a detach in %s's loss it is not the derivative of its update. "
            "Exact: %s.hypergradient=t1t2",
            edge,
            100 * agreement.relative_error,
            agreement.cosine,
            level.name,
            level.name,
        )
    return cross


def needs_differences(level: Level, v: Vector) -> bool:
    """Whether Hessian products must be differences of gradients: a kernel has no double backward, or cuts it off."""
    if level.is_nested:
        return False
    try:
        product: Vector | None = level.hvp(v)
        why = "cut off by a kernel, zero"
    except Unsupported as error:
        product, why = None, _first_line(error)
    if product is not None and any(bool((t != 0).any()) for t in product):
        return False
    level.take_differences()
    if product is not None and not any(bool((t != 0).any()) for t in level.hvp(v)):
        return False
    log.warning(
        "%s: double backward is not available for this loss (%s); Hessian products by differences of gradients",
        level.name,
        why,
    )
    return True


def _is_cut_off(reference: dict[str, Vector], level: Level, x: Vector) -> bool:
    """Whether double backward reached nothing where the loss does change."""
    if any(bool((t != 0).any()) for part in reference.values() for t in part):
        return False
    changed = _attempt(CentralDifference(FALLBACK_RADIUS, relative=False), level, x)
    return not isinstance(changed, Exception) and any(bool((t != 0).any()) for part in changed.values() for t in part)


def _attempt(cross: Cross, level: Level, x: Vector) -> dict[str, Vector] | Exception:
    try:
        return cross(level, x)
    except Unsupported as error:
        return error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].split(". ")[0]


def _title(cross: Cross) -> str:
    return {ForwardOverReverse: "forward over reverse", DoubleBackward: "double backward"}.get(
        type(cross), type(cross).__name__
    )
