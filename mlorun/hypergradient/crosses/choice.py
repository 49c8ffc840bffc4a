"""Which cross and which Hessian products an edge really uses: decided once, at its first hypergradient.

Each is held against differences of the lower problem's first gradient (hypergradient.crosses.reference). What a kernel
lacks, cuts off in silence or differentiates wrongly is replaced by what agrees with them. A central difference that was
asked for stays, and the log says how far off it is through a stop-gradient.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.central_difference import CentralDifference, HeldCentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.crosses.reference import Reference
from mlorun.hypergradient.derivatives import Unsupported
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector

log = logging.getLogger("mlorun.hypergradient")

LARGEST_DIFFERENCE_ERROR = 0.045  # relative: that of a cosine of 0.999
WRONG = "some kernel cuts second derivatives off, or has wrong ones"

# what may stand in for a cross, by the name of its type, in this order
STAND_INS: Mapping[str, Callable[[], Cross]] = {
    "DoubleBackward": DoubleBackward,
    "HeldCentralDifference": HeldCentralDifference,
}


def choose(cross: Cross, level: Level, v: Vector, *, curvature: bool) -> tuple[Cross, bool]:
    """`cross` or what stands in for it on this level, and whether Hessian products must be differences of gradients.

    curvature   whether there are Hessian products

    Of a total loss, whose second derivatives are made of others' by double backward, nothing but that will do.
    Logs its reasons, once.
    """
    if level.is_nested:
        return DoubleBackward(), False
    reference = Reference(level, v)
    differences = curvature and _hessian_needs_differences(reference, level, v)
    if isinstance(cross, CentralDifference):
        _warn_of_difference(cross, reference, level, v)
        return cross, differences
    return _honest(cross, reference, level, v), differences


def fault_of_double_backward(level: Level, v: Vector) -> str | None:
    """What is wrong with double backward on this level, in Hessian or cross, in words; None where nothing is."""
    return _fault_of_both(Reference(level, v), level, v)


def fault_of_third_derivatives(level: Level) -> str | None:
    """What is wrong with third derivatives of this level, in words; None where nothing is."""
    try:
        error = Reference(level, vectors.zeros_like(level.theta)).third_error()
    except Unsupported as missing:
        return _not_available(missing)
    wrong = "some kernel cuts third derivatives off, or has wrong ones"
    return f"is {100 * error:.2g} % off the change of the Hessian: {wrong}" if error else None


def needs_differences(level: Level, v: Vector) -> bool:
    """Whether second derivatives of this level, Hessian and cross both, must be differences of gradients.

    The log says why, and how far off the differences are, if they are.
    """
    reference = Reference(level, v)
    fault = _fault_of_both(reference, level, v)
    if fault is None:
        return False
    error = reference.cross_error(HeldCentralDifference(), rough=True)
    log.warning(
        "%s: double backward %s; second derivatives by differences of gradients%s",
        level.name,
        fault,
        f", which are {100 * error:.2g} % off themselves" if error else "",
    )
    return True


def _fault_of_both(reference: Reference, level: Level, v: Vector) -> str | None:
    return _fault_of_hessian(reference, level, v) or _fault(DoubleBackward(), reference, level, v)


def _hessian_needs_differences(reference: Reference, level: Level, v: Vector) -> bool:
    fault = _fault_of_hessian(reference, level, v)
    if fault is None:
        return False
    log.warning("%s: double backward %s; Hessian products by differences of gradients", level.name, fault)
    return True


def _fault_of_hessian(reference: Reference, level: Level, v: Vector) -> str | None:
    try:
        level.hvp(v)
    except Unsupported as missing:
        return _not_available(missing)
    error = reference.hessian_error()
    return f"is {100 * error:.2g} % off the change of the gradient in a Hessian product: {WRONG}" if error else None


def _honest(cross: Cross, reference: Reference, level: Level, v: Vector) -> Cross:
    """The first of `cross` and its stand-ins that is available and agrees with the reference; else the last."""
    others = [make() for name, make in STAND_INS.items() if name != type(cross).__name__]
    faults: list[str] = []
    for candidate in (cross, *others):
        fault = _fault(candidate, reference, level, v)
        if fault is None:
            break
        faults.append(f"{_title(candidate)} {fault}")
    if not faults:
        return cross
    rest = f", the best there is: {faults[-1]}" if fault is not None else ""
    log.warning(
        "%s <- %s: %s; using %s%s",
        ", ".join(level.lam),
        level.name,
        "; ".join(faults[: len(others)]),
        _title(candidate),
        rest,
    )
    return candidate


def _fault(cross: Cross, reference: Reference, level: Level, v: Vector) -> str | None:
    try:
        cross(level, v)
    except Unsupported as missing:
        return _not_available(missing)
    error = reference.cross_error(cross, rough=isinstance(cross, HeldCentralDifference))
    return f"is {100 * error:.2g} % off the change of the gradient: {WRONG}" if error else None


def _warn_of_difference(cross: CentralDifference, reference: Reference, level: Level, v: Vector) -> None:
    """Log how far a difference that was asked for is off, and why: by what it sees through, by its radius, or by
    rounding."""
    honest, radius = HeldCentralDifference(), f"Its radius of {cross.radius:g} is too"
    if reference.cross_error(cross, rough=True):
        error, cosine = _off(reference.product(cross), reference.product(honest))
        rest, _ = _off(
            reference.product(HeldCentralDifference(cross.length(reference.level))), reference.product(honest)
        )
        why = (
            f"A difference of the loss sees through stop-gradients: with a detach in {level.name}'s loss it is not the "
            "derivative of its update."
            if rest < error / 2
            else f"{radius} large for how the loss curves, or too small for its precision."
        )
    elif _fault(exact := ForwardOverReverse(), reference, level, v) is None:
        # the reference may be in float64, the difference is not
        error, cosine = _off(_product(cross, level, v), _product(exact, level, v))
        why = f"{radius} small for the parameters' precision."
    else:
        return
    if error > LARGEST_DIFFERENCE_ERROR:
        log.warning(
            "%s <- %s: the central difference is %.0f %% off the exact product (cosine %.3f). %s Exact: "
            "%s.hypergradient=t1t2",
            ", ".join(level.lam),
            level.name,
            100 * error,
            cosine,
            why,
            level.name,
        )


def _product(cross: Cross, level: Level, x: Vector) -> Vector:
    """B x, every lam in one row of tensors."""
    return tuple(t.detach() for part in cross(level, x).values() for t in part)


def _off(product: Vector, exact: Vector) -> tuple[float, float]:
    """The relative distance, and the cosine; 0 and 1 where the exact product is 0."""
    length = vectors.norm(exact).item()
    if not length:
        return 0.0, 1.0
    distance = vectors.norm(vectors.add(product, exact, alpha=-1.0)).item() / length
    return distance, vectors.cosine(product, exact).item()


def _not_available(missing: Exception) -> str:
    first_line = str(missing).split("\n")[0].split(". ")[0]
    return f"is not available for this loss (torch: {first_line})"


def _title(cross: Cross) -> str:
    return {
        ForwardOverReverse: "forward over reverse",
        DoubleBackward: "double backward",
        HeldCentralDifference: "central difference with stop-gradients held",
    }.get(type(cross), type(cross).__name__)
