"""The verdict: how far a hypergradient is from the derivative of the solved program, and why. In plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mlorun.verify.exact import ExactOrFinest, Optimality
from mlorun.verify.resolve import KINK, Agreement, Resolved

# every threshold of a verdict
AGREES = 0.05  # relative distance up to which two hypergradients are one
SAME_DIRECTION = 0.9  # cosine from which only lengths differ
LONGEST = 1e3  # times as long or as short, up to where a length can be a matter of the upper learning rate
UNSOLVED_STEP = 0.05  # Newton step, of the parameters, above which a lower problem is not solved
NO_MINIMUM = -1e-3  # eigenvalue, of the largest, below which a point is no minimum
ROSE = 1e-6  # relative, by which a loss may be larger after a solve than before
REPEATED = 1e-3  # relative distance from running an inner loop again

MOVING = (
    "its loss detaches something that depends on its own parameters: where its updates settle moves by another matrix "
    "than the Hessian, so that the implicit formula is not the derivative of the solved program"
)
ZERO = 1e-6  # of the hypergradient's length, below which the derivative of the solved program is 0
FITTED = 1e-6  # of its loss before, below which a solved problem fits its batch
GOOD, LENGTH, UNKNOWN, FAR, WRONG_WAY = range(5)  # from the best to the worst
LABELS = {
    GOOD: "OK",
    LENGTH: "DIRECTION ONLY",
    UNKNOWN: "NOT KNOWN",
    FAR: "FAR OFF",
    WRONG_WAY: "WRONG WAY",
}


@dataclass(frozen=True)
class Verdict:
    """Of one upper problem at one point: its grade, in one sentence, and the reasons; and the cosine behind it."""

    grade: int
    text: str
    reasons: tuple[str, ...] = ()
    cosine: float = math.nan

    @property
    def badness(self) -> tuple[int, float]:
        """Larger is worse."""
        return self.grade, 0.0 if math.isnan(self.cosine) else -self.cosine

    @property
    def passes(self) -> bool:
        """Whether its direction, at least, is that of the solved program's derivative, or of the loop as it runs."""
        return self.grade <= LENGTH


@dataclass(frozen=True)
class Evidence:
    """What a verdict is made of.

    implicit    against the implicit function theorem at this point; None where it says 0
    solves      behind that formula, by lower problem
    detached    lower problems whose loss detaches something that depends on their own parameters
    again       distance of its slope from a difference quotient of the inner loop run again; None where not taken
    resolved    against the solved program, where that was asked for
    partial     why the implicit function theorem's could be taken in part alone; None where it is whole
    gaps        what the estimators leave out of that derivative by their own definition, one line each
    """

    implicit: Agreement | None
    solves: Mapping[str, ExactOrFinest]
    detached: Sequence[str]
    again: float | None
    resolved: Resolved | None
    gaps: Sequence[str] = ()
    partial: str | None = None


def judge(evidence: Evidence) -> Verdict:
    """Against the solved program where there is one, else as far as the implicit function theorem goes."""
    if evidence.resolved is not None:
        verdict = replace(_by_resolving(evidence.resolved), cosine=evidence.resolved.indirect.cosine)
        if verdict.grade != GOOD:
            verdict = replace(verdict, reasons=(*verdict.reasons, *_away(evidence)))
    elif evidence.implicit is None:
        return _by_running_again(evidence.again)
    else:
        verdict = replace(_by_the_formula(evidence, evidence.implicit), cosine=evidence.implicit.cosine)
    if verdict.grade == GOOD:
        return verdict
    return replace(verdict, reasons=(*verdict.reasons, *evidence.gaps))


def _by_the_formula(evidence: Evidence, implicit: Agreement) -> Verdict:
    grade, text = _compared(implicit, "the implicit function theorem's")
    reasons = _away(evidence)
    if evidence.partial is not None:
        reasons.append(f"the formula leaves out how problems below a steered one answer it: {evidence.partial}")
    if reasons:
        return Verdict(UNKNOWN, f"{text}, and that is no reference here; see --resolve", tuple(reasons))
    left = [f"{name} {solve.residual:.0e}" for name, solve in evidence.solves.items() if not solve.reached]
    if left:
        reason = (
            f"the solve behind the implicit function theorem left a residual ({', '.join(left)} of v): v lies partly "
            "where the Hessian is flat, or the solve is unfinished"
        )
        return Verdict(UNKNOWN, f"{text}, as far as that is known; see --resolve", (reason,))
    if grade == GOOD:
        text += ": the lower problems are solved here, so it is the derivative of the solved program"
    return Verdict(grade, text)


def _away(evidence: Evidence) -> list[str]:
    """Why the implicit function theorem does not hold at the point."""
    troubles = [unsolved(name, solve.optimality) for name, solve in evidence.solves.items()]
    formula = "the implicit formula itself is not the derivative of the solved program here"
    reasons = [f"{trouble}: {formula}" for trouble in troubles if trouble is not None]
    return reasons + [f"{name}: {MOVING}" for name in evidence.detached]


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


def optimality_line(name: str, solve: ExactOrFinest) -> str:
    """How far one lower problem is from its optimum, and how well the implicit formula is solved there, in numbers."""
    at = solve.optimality
    assert at is not None
    decrement = "none, for the Hessian is not positive there" if math.isnan(at.decrement) else f"{at.decrement:.1e}"
    return (
        f"{name}: norm of its gradient {at.gradient:.1e}, Newton step {_percent(at.step)} of the parameters, "
        f"Newton decrement {decrement}; off IFT by {solve.summary}"
    )


def _compared(agreement: Agreement, whose: str) -> tuple[int, str]:
    """Grade and words for a cosine and a distance."""
    cosine, off, length = agreement.cosine, agreement.error, agreement.length
    if math.isnan(cosine) and not off:
        return GOOD, f"agrees with {whose}, which is 0"
    if length <= ZERO:
        return FAR, f"0, while {whose} is not"
    if math.isinf(length):
        return FAR, f"not 0, while {whose} is"
    if cosine < 0:
        return WRONG_WAY, f"points the wrong way (cosine {cosine:.2f} with {whose})"
    if cosine < SAME_DIRECTION:
        return FAR, f"far from {whose} (cosine {cosine:.2f})"
    if off <= AGREES:
        return GOOD, f"agrees with {whose} (relative distance {off:.0e})"
    grade = LENGTH if 1 / LONGEST <= length <= LONGEST else FAR
    long = "about as long" if abs(length - 1) <= AGREES else f"{length:.3g} times as long"
    return grade, f"near the direction of {whose} (cosine {cosine:.4f}), {long}"


def _by_running_again(again: float | None) -> Verdict:
    nothing = "no optimum below depends on the upper parameters, so that there is no solved program to compare with"
    if again is None:
        return Verdict(UNKNOWN, "not judged", (nothing,))
    if again <= REPEATED:
        return Verdict(GOOD, f"the derivative of the inner loop as it runs (off by {again:.0e})", (nothing,))
    return Verdict(FAR, f"far from a difference quotient of running the inner loop again ({again:.1e})", (nothing,))


def _by_resolving(resolved: Resolved) -> Verdict:
    grade, text = _compared(resolved.indirect, "the derivative of the solved program")
    if resolved.both_zero:
        grade, text = GOOD, "agrees with the derivative of the solved program: both are 0 to rounding"
    elif resolved.solved_is_zero:
        grade, text = FAR, "not 0, while the derivative of the solved program is"
    reasons, doubts = [], []
    own = next((row for row in resolved.directions if row.name == "along itself"), None)
    if own is not None and own.slope * own.quotient < 0 and abs(own.quotient) > resolved.noise:
        reasons.append("along the whole hypergradient, direct part included, the re-solved loss falls")
        grade = WRONG_WAY
    for name in resolved.unsolved:
        how = "within the budget: raise --resolve-budget"
        if name not in resolved.spent:
            how = "for no step made its gradient smaller: its loss has kinks there, as ReLU makes them, or flat valleys"
        doubts.append(f"the quotients are uncertain: {name} was not solved {how}")
    for name, (before, after) in resolved.losses.items():
        if after > before + ROSE * abs(before):
            doubts.append(
                f"the solve of {name} ended where its loss is larger, {after:.3g} after {before:.3g}: a place where "
                "its gradient is 0, and not the minimum that a run looks for"
            )
        elif 0 <= after <= FITTED * before and resolved.solved_is_zero:
            doubts.append(
                f"{name}, solved, fits its batch (loss {after:.0e}), whatever the upper parameters are: nothing is "
                "left to differentiate. Weight decay in its optimizer, a larger batch or a smaller module changes that"
            )
    if resolved.kink > KINK and not resolved.both_zero:
        doubts.append(
            f"the re-solved loss bends or jumps within the step of the quotients ({_percent(resolved.kink)} of them)"
        )
    return Verdict(UNKNOWN if doubts else grade, text, (*reasons, *doubts))


def _percent(part: float) -> str:
    percent = 100 * part
    return f"{percent:.2g} %" if percent < 10 else f"{percent:.0f} %" if percent < 1e4 else f"{percent:.0e} %"
