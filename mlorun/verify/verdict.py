"""The verdict: how far a hypergradient is from the derivative of the solved program, and why. In plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlorun.verify.exact import ExactOrFinest, Optimality
from mlorun.verify.resolve import KINK, Agreement, Resolved

# every threshold of a verdict
AGREES = 0.05  # relative distance up to which two hypergradients are one
SAME_DIRECTION = 0.9  # cosine from which only lengths differ
UNSOLVED_STEP = 0.05  # Newton step, of the parameters, above which a lower problem is not solved
NO_MINIMUM = -1e-3  # eigenvalue, of the largest, below which a point is no minimum
REPEATED = 1e-3  # relative distance from running an inner loop again

MOVING = (
    "its loss detaches something that depends on its own parameters: where its updates settle moves by another matrix "
    "than the Hessian, so that the implicit formula is not the derivative of the solved program"
)
GOOD, LENGTH, UNKNOWN, FAR, WRONG_WAY = range(5)  # from the best to the worst


@dataclass(frozen=True)
class Verdict:
    """Of one upper problem at one point: its grade, in one sentence, and the reasons."""

    grade: int
    text: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made of.

    implicit    against the implicit function theorem at this point; None where it says 0
    solves      behind that formula, by lower problem
    detached    lower problems whose loss detaches something that depends on their own parameters
    again       distance of its slope from a difference quotient of the inner loop run again; None where not taken
    resolved    against the solved program, where that was asked for
    """

    implicit: Agreement | None
    solves: Mapping[str, ExactOrFinest]
    detached: Sequence[str]
    again: float | None
    resolved: Resolved | None


def judge(evidence: Evidence) -> Verdict:
    """Against the solved program where there is one, else as far as the implicit function theorem goes."""
    if evidence.resolved is not None:
        return _by_resolving(evidence.resolved)
    if evidence.implicit is None:
        return _by_running_again(evidence.again)
    whose = "the implicit function theorem's"
    grade, text = _compared(evidence.implicit, whose)
    reasons = []
    for name, solve in evidence.solves.items():
        if (trouble := unsolved(name, solve.optimality)) is not None:
            reasons.append(f"{trouble}: the implicit formula itself is not the derivative of the solved program here")
    reasons += [f"{name}: {MOVING}" for name in evidence.detached]
    if reasons:
        return Verdict(max(grade, UNKNOWN), f"{text}, and that is no reference here; see --resolve", tuple(reasons))
    left = [f"{name} {solve.residual:.0e}" for name, solve in evidence.solves.items() if not solve.reached]
    if left:
        reason = f"the solve behind the implicit function theorem left a residual ({', '.join(left)} of v)"
        return Verdict(max(grade, UNKNOWN), f"{text}, as far as that is known; see --resolve", (reason,))
    if grade == GOOD:
        text += ": the lower problems are solved here, so it is the derivative of the solved program"
    return Verdict(grade, text)


def unsolved(name: str, at: Optimality | None) -> str | None:
    """Why the point is no optimum of the lower problem; None where it is one."""
    if at is None:
        return None
    if at.step > UNSOLVED_STEP:
        return (
            f"the lower problem {name} is not solved at this point (norm of its gradient {at.gradient:.2g}, "
            f"Newton step {_percent(at.step)} of the parameters)"
        )
    if at.lowest < NO_MINIMUM:
        return f"this point is no minimum of the lower problem {name} (its Hessian has negative eigenvalues)"
    return None


def optimality_line(name: str, at: Optimality) -> str:
    """How far one lower problem is from its optimum, in numbers."""
    decrement = "none, for the Hessian is not positive there" if math.isnan(at.decrement) else f"{at.decrement:.1e}"
    return (
        f"lower problem {name}: norm of its gradient {at.gradient:.1e}, Newton step {_percent(at.step)} of the "
        f"parameters, Newton decrement {decrement}"
    )


def _compared(agreement: Agreement, whose: str) -> tuple[int, str]:
    """Grade and words for a cosine and a distance."""
    cosine, off = agreement.cosine, agreement.error
    if math.isnan(cosine) and not off:
        return GOOD, f"agrees with {whose}, which is 0"
    if math.isnan(cosine):
        return FAR, f"zero, which {whose} is not"
    if cosine < 0:
        return WRONG_WAY, f"points the wrong way (cosine {cosine:.2f} with {whose})"
    if cosine < SAME_DIRECTION:
        return FAR, f"far from {whose} (cosine {cosine:.2f})"
    if off <= AGREES:
        return GOOD, f"agrees with {whose} (relative distance {off:.0e})"
    return LENGTH, f"near the direction of {whose} (cosine {cosine:.4f}), not its length (relative distance {off:.1e})"


def _by_running_again(again: float | None) -> Verdict:
    nothing = "no optimum below depends on the upper parameters, so that there is no solved program to compare with"
    if again is None:
        return Verdict(UNKNOWN, "not judged", (nothing,))
    if again <= REPEATED:
        return Verdict(GOOD, f"the derivative of the inner loop as it runs (off by {again:.0e})", (nothing,))
    return Verdict(FAR, f"far from a difference quotient of running the inner loop again ({again:.1e})", (nothing,))


def _by_resolving(resolved: Resolved) -> Verdict:
    reasons = []
    grade, text = _compared(resolved.indirect, "the derivative of the solved program")
    own = next((row for row in resolved.directions if row.name == "along itself"), None)
    if own is not None and own.slope * own.quotient < 0:
        reasons.append("along the whole hypergradient, direct part included, the re-solved loss falls")
        grade = WRONG_WAY
    for name in resolved.unsolved:
        reasons.append(f"{name} was not solved within the budget: the quotients are uncertain; raise --resolve-budget")
        grade = max(grade, UNKNOWN)
    for name, (before, after) in resolved.rose.items():
        reasons.append(
            f"the solve of {name} ended where its loss is larger, {after:.3g} after {before:.3g}: a place where its "
            "gradient is 0, and not the minimum that a run looks for"
        )
        grade = max(grade, UNKNOWN)
    if resolved.kink > KINK:
        reasons.append(
            f"the re-solved loss bends or jumps within the step of the quotients ({_percent(resolved.kink)} of them)"
        )
        grade = max(grade, UNKNOWN)
    return Verdict(grade, text, tuple(reasons))


def _percent(part: float) -> str:
    percent = 100 * part
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %" if percent < 1e4 else f"{percent:.0e} %"
