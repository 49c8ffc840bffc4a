"""Verify one program: its estimators at a few points of a short run, and every estimator there is at the last."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mlorun.core.engine import Engine
from mlorun.errors import ConfigError, GraphError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.estimator import Hypergradient, Nested
from mlorun.hypergradient.estimators.implicit import Carry
from mlorun.hypergradient.sweep import Carries, Edges, total
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.cause import cause, rounding, takes_differences
from mlorun.verify.exact import ExactOrFinest
from mlorun.verify.gap import gap
from mlorun.verify.point import Cost, VerificationPoint, cosine, relative_error
from mlorun.verify.reference import Definition, definition, implicit
from mlorun.verify.rerun import loop_again
from mlorun.verify.resolve import Agreement, Resolved, resolve
from mlorun.verify.second_derivatives import SecondDerivatives, second_derivatives
from mlorun.verify.solved_program import DoesNotApply
from mlorun.verify.verdict import Evidence, Verdict, judge, optimality_line

QUOTIENT_CLOSE = 1e-5
ROUNDING = 3.0  # times as far as exact derivatives are in float32


@dataclass(frozen=True)
class EdgeReport:
    """One edge at one point.

    error           relative, against the estimator's own definition with exact derivatives in float64
    off_ift         relative distance from the implicit function theorem's at this point; `cosine` likewise; NaN where
                    the lower loss does not read the problem, so that its optimum does not depend on it
    solved          whether the solves behind that formula reached their answer
    """

    upper: str
    lower: str
    to: str
    estimator: str
    error: float
    bound: float
    off_ift: float
    cosine: float
    norm: float
    solved: bool

    @property
    def holds(self) -> bool:
        return self.error <= self.bound


@dataclass(frozen=True)
class PointReport:
    """One upper problem right before one of its steps.

    references     what the estimators were held against
    optimality     how far each lower problem is from its optimum
    explanations   why an error is as it is
    resolved       what re-solving gave, where it was asked for and applies; else why it does not, or None
    """

    step: int
    upper: str
    edges: tuple[EdgeReport, ...]
    cost: Cost
    lower_gradient_seconds: float
    disturbed: tuple[str, ...]
    references: tuple[str, ...]
    optimality: tuple[str, ...]
    explanations: tuple[str, ...]
    verdict: Verdict
    resolved: Resolved | str | None = None

    @property
    def holds(self) -> bool:
        return not self.disturbed and all(edge.holds for edge in self.edges)


def points(engine: Engine, count: int, steps: int) -> Iterator[tuple[int, VerificationPoint, bool]]:
    """The program right before `count` steps of each upper problem, evenly over `steps` global steps. Trains it.

    (step, point, whether it is the last of its upper problem); a point holds until the next one is asked for.
    The engine must have been built with `record_all`.
    """
    if not engine.recorder.record_all:
        raise ValueError("build the engine with record_all=True: references may need what its estimators do not")
    uppers = [name for name in engine.graph.names if engine.graph.nodes_on_paths(name)]
    if not uppers:
        raise ConfigError(
            "nobody differentiates through anybody in this program", where="dependencies.u2l", fix="declare an edge"
        )
    engine.probe()
    steps = min(steps, engine.train_iters)
    for upper in uppers:
        if not any(_steps(engine, upper, step) for step in range(steps)):
            raise ConfigError(
                f"{upper} takes no step within {steps} global steps",
                where="--steps",
                fix="more --steps, or a smaller unroll_steps or warmup_steps",
            )
    chosen = {upper: _spread([s for s in range(steps) if _steps(engine, upper, s)], count) for upper in uppers}
    last = max(max(some) for some in chosen.values())
    pending = {(step, upper) for upper in uppers for step in chosen[upper]}
    for action in engine.actions():
        step, upper = engine.step_count, action.problem
        if step > last:
            return
        if action.kind == "step" and (step, upper) in pending:
            pending.discard((step, upper))
            yield step + 1, VerificationPoint(engine, upper), step == max(chosen[upper])


def examine(step: int, point: VerificationPoint, resolve_budget: int | None = None) -> PointReport:
    """Everything there is to say of the configured estimators at one point.

    resolve_budget   also solve the lower problems again, with so many gradients a solve at most
    """
    problems = point.engine.problems
    second = {node: second_derivatives(level) for node, level in point.levels().items()}
    definitions = {node: definition(problems[node], second[node]) for node in point.nodes}
    carries = _as_defined(point.carries)
    got = point.estimate()
    wanted = point.reference({n: d.estimate for n, d in definitions.items()}, carries)
    ift, solves, in_part = implicit_edges(point, second)
    solved = all(solve.reached for solve in solves.values())
    bounds = _bounds(point, definitions, wanted, carries)
    edges = tuple(
        EdgeReport(
            upper=point.upper,
            lower=node,
            to=to,
            estimator=_in_use(problems[node].hypergradient, point.carries.get(node)),
            error=relative_error(part, wanted[node, to]),
            bound=bounds[node, to],
            off_ift=relative_error(part, ift[node, to]) if vectors.norm(ift[node, to]) else math.nan,
            cosine=cosine(part, ift[node, to]),
            norm=float(vectors.norm(part)),
            solved=solved,
        )
        for (node, to), part in got.items()
    )
    explanations = [f"{node}: {each.fault}" for node, each in second.items() if each.backward_is_wrong]
    explained = set()
    for edge in edges:
        key = edge.lower, edge.to
        own = problems[edge.lower].hypergradient
        if edge.holds or edge.lower in explained:
            continue
        explained.add(edge.lower)
        if takes_differences(own, point.carries.get(edge.lower)):
            why: str | None = cause(point, key, definitions, carries, wanted, second[edge.lower])
        else:
            why = rounding(point, key, definitions, carries, wanted)
        if why is not None:
            explanations.append(f"{edge.lower}: {why}")
    answering = {edge.lower for edge in edges if not math.isnan(edge.off_ift)}
    references = [
        f"{node}: {definitions[node].what}{_total(point, node)}, in {point.precision}"
        + ("" if node in answering else "; off IFT: -, for the optimum of its loss depends on nobody above")
        for node in point.nodes
    ]
    again = loop_again(point, wanted)
    if again is not None:
        quotient = f"{point.nodes[0]}: difference quotient of running its inner loop again: off by {again:.0e}"
        if again > QUOTIENT_CLOSE:
            quotient += " (a rerun sees through stop-gradients in the loss, derivatives do not)"
        references.append(quotient)
    indirect, by_formula = total(got, point.upper), total(ift, point.upper)
    resolved = None
    if resolve_budget is not None and indirect is not None:
        resolved = _resolved(point, indirect, implicit_is_zero=not answering, budget=resolve_budget)
    evidence = Evidence(
        _agreement(indirect, by_formula),
        {node: solve for node, solve in solves.items() if node in answering},
        [node for node in second if node in answering and second[node].moving_detached],
        again,
        resolved if isinstance(resolved, Resolved) else None,
        tuple(f"{node}: {why}" for node, each in definitions.items() if (why := _gap(point, node, each)) is not None),
        in_part,
    )
    return PointReport(
        step,
        point.upper,
        edges,
        point.cost(),
        point.lower_gradient_seconds(point.nodes[-1]),
        tuple(point.disturbances()),
        tuple(references),
        tuple(optimality_line(node, solve) for node, solve in solves.items() if solve.optimality and node in answering),
        tuple(explanations),
        judge(evidence),
        resolved,
    )


def _total(point: VerificationPoint, node: str) -> str:
    if not point.engine.graph.nodes_on_paths(node) or point.engine.adjoint.estimate(node).needs.nested == "own_loss":
        return ""
    return " of its total loss, which is the estimator's own (--resolve shares nothing with it)"


def _gap(point: VerificationPoint, node: str, by_definition: Definition) -> str | None:
    estimate = point.engine.adjoint.estimate(node)
    below = point.engine.graph.nodes_on_paths(node)
    return gap(estimate, by_definition.solve, below, sum(t.numel() for t in point.views.theta(point.upper)))


def _agreement(got: Vector | None, wanted: Vector | None) -> Agreement | None:
    """None where there is nothing to agree with."""
    if got is None or wanted is None or not vectors.norm(wanted):
        return None
    length = float(vectors.norm(got) / vectors.norm(wanted))
    return Agreement(cosine(got, wanted), relative_error(got, wanted), length)


def _resolved(point: VerificationPoint, indirect: Vector, *, implicit_is_zero: bool, budget: int) -> Resolved | str:
    try:
        return resolve(point, indirect, implicit_is_zero=implicit_is_zero, budget=budget)
    except DoesNotApply as reason:
        return str(reason)


def _bounds(
    point: VerificationPoint, definitions: Mapping[str, Definition], wanted: Edges, carries: Carries
) -> dict[tuple[str, str], float]:
    """Of every edge. What double backward loses to rounding, too, is no mistake of forward over reverse."""
    bounds = {(node, to): definitions[node].bound for node, to in wanted}
    products = {node for node in point.nodes if definitions[node].product}
    if products:
        rounded = point.estimate({n: d.estimate for n, d in definitions.items()}, carries)
        for (node, to), exact in wanted.items():
            if node in products:
                lost = relative_error(rounded[node, to], exact)
                bounds[node, to] = max(bounds[node, to], ROUNDING * lost)
    return bounds


def implicit_edges(
    point: VerificationPoint, second: Mapping[str, SecondDerivatives] | None = None
) -> tuple[Edges, dict[str, ExactOrFinest], str | None]:
    """-B H^-1 v of every edge, in float64; by which solve for each lower problem; and, where no total loss can be
    differentiated, why, so that those are of each problem's own loss.

    second   of every lower problem's loss, where that is known already
    """
    if second is None:
        second = {node: second_derivatives(level) for node, level in point.levels().items()}

    def taken(nested: Nested) -> tuple[Edges, dict[str, ExactOrFinest]]:
        solves = {node: ExactOrFinest() for node in point.nodes}
        estimates = {node: implicit(solve, "after", nested, second[node]) for node, solve in solves.items()}
        return point.reference(estimates), solves

    try:
        return *taken("full"), None
    except GraphError as refused:
        return *taken("own_loss"), refused.message


def _steps(engine: Engine, name: str, step: int) -> bool:
    return any(action.problem == name and action.kind == "step" for action in engine.plan.at(step))


def _spread(steps: list[int], count: int) -> set[int]:
    """`count` of them, first and last included."""
    if len(steps) <= count:
        return set(steps)
    return {steps[round(i * (len(steps) - 1) / max(1, count - 1))] for i in range(count)}


def _as_defined(carries: Carries) -> Carries:
    """What solves start from stays; the cross is exact."""
    return {
        node: Carry(DoubleBackward(), carry.solve, carry.differences) if isinstance(carry, Carry) else carry
        for node, carry in carries.items()
    }


def _in_use(estimate: Hypergradient | None, carry: object) -> str:
    assert estimate is not None
    return estimate.in_use(carry)
