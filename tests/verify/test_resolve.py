"""Re-solving: the derivative of the solved program by its definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor, nn

import mlorun
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Nested
from mlorun.hypergradient.estimators.first_order import FirstOrder
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.sweep import total
from mlorun.verify.exact import ExactOrFinest
from mlorun.verify.oracles import CASES, NESTED_CASES, Case, Row
from mlorun.verify.point import VerificationPoint
from mlorun.verify.program import PointReport, examine, points
from mlorun.verify.resolve import Resolved, agreement, resolve
from mlorun.verify.solve import solve
from mlorun.verify.solved_program import DoesNotApply, SolvedProgram, responding
from mlorun.verify.suite import relative
from mlorun.verify.verdict import FAR, GOOD, LENGTH, UNKNOWN
from tests.hypergradient.test_nested import PROGRAMS
from tests.hypergradient.test_nested import exact as exact_of
from tests.hypergradient.test_nested import program as nested_program
from tests.verify.programs import first_point, identity, oracle, program, report, ridge_losses, row_of

BUDGET = 2000


@pytest.fixture(autouse=True)
def _float64() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def exact() -> Implicit:
    return Implicit(Exact(0.0, 100), ForwardOverReverse(), "after", "full")


def resolved(case: Case) -> Resolved:
    """Against the exact hypergradient of the closed form."""
    point = first_point(oracle(case, exact), upper=case.upper)
    indirect = total(point.estimate(), case.upper)
    assert indirect is not None
    return resolve(point, indirect, implicit_is_zero=False, budget=BUDGET)


@pytest.mark.parametrize("name", [*CASES, *NESTED_CASES])
def test_re_solving_agrees_with_the_exact_hypergradient_of_every_closed_form(name: str) -> None:
    made = resolved({**CASES, **NESTED_CASES}[name]())
    assert made.solved and made.kink < 1e-2
    assert made.whole.error < 1e-5 and made.indirect.error < 1e-5
    assert made.whole.cosine == pytest.approx(1, abs=1e-9)
    own = made.directions[0]
    assert own.name == "along itself" and own.quotient == pytest.approx(own.slope, rel=1e-5)


def test_it_disagrees_with_an_estimator_that_is_not_the_derivative() -> None:
    alpha, theta, upper, lower = ridge_losses()
    made = report(program((Row(alpha), upper), (Row(theta), lower), identity()), budget=BUDGET)
    assert isinstance(made.resolved, Resolved)
    assert made.holds and made.resolved.whole.error > 0.05
    assert made.verdict.grade != GOOD


def test_first_order_is_zero_where_the_derivative_is_not() -> None:
    alpha, theta, upper, lower = ridge_losses()
    made = report(program((Row(alpha), upper), (Row(theta), lower), FirstOrder()), budget=BUDGET)
    assert made.verdict.grade == FAR and made.verdict.text.startswith("0, while")


def test_weight_decay_of_the_optimizer_is_part_of_what_is_solved() -> None:
    alpha, theta, upper, lower = ridge_losses()

    def decayed(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.5)  # type: ignore[arg-type]

    engine = program((Row(alpha), upper), (Row(theta), lower), exact(), optimizer=decayed, unroll_steps=400)
    made = report(engine, steps=400, budget=BUDGET)
    assert isinstance(made.resolved, Resolved)
    assert made.resolved.solutions["low"].before < 1e-8, "the run has settled at the minimum with weight decay"
    assert made.resolved.whole.error < 1e-5 and made.verdict.grade == GOOD


def test_a_budget_that_is_too_small_is_said() -> None:
    alpha, theta, upper, lower = ridge_losses()
    made = report(program((Row(alpha), upper), (Row(theta + 3), lower), exact()), budget=3)
    assert isinstance(made.resolved, Resolved) and made.resolved.unsolved == ("low",)
    assert any("raise --resolve-budget" in reason for reason in made.verdict.reasons)


@pytest.mark.parametrize("experiment", ["hpo_digits", "maml_sinusoid"])
@pytest.mark.usefixtures("empty_folder")
def test_a_learned_rate_or_start_has_no_solved_program(experiment: str) -> None:
    torch.set_default_dtype(torch.float32)
    small = ["meta.module.sizes=[1,4,1]", "learner.batch_size=2"] if experiment == "maml_sinusoid" else []
    built = mlorun.build(mlorun.compose([f"experiment={experiment}", *small]), record_all=True)
    step, point, _ = next(points(built, 1, 20))
    made = examine(step, point, BUDGET)
    assert isinstance(made.resolved, str) and "learned" in made.resolved
    assert "as it runs" in made.verdict.text, "running it again is the reference"


def nested(upper: str) -> Case:
    """The scalar oracle of nested levels: dF/dlam is +0.5, -0.5, -2 or +1.5."""
    losses = {
        "+0.5": lambda p: (p["bottom"] - 2).square().sum() / 2 + p["middle"].square().sum() / 4,
        "-0.5": lambda p: (p["bottom"] - 2).square().sum() / 2 + p["middle"].square().sum() / 2,
        "-2": lambda p: p["middle"].square().sum() / 2 + 0 * p["bottom"].sum(),
        "+1.5": lambda p: (p["bottom"] - 2).square().sum() / 2 + 0 * p["middle"].sum(),
    }
    one = torch.ones(1)
    return Case(
        losses={
            "top": lambda p: losses[upper](p) + 0 * p["top"].sum(),
            "middle": lambda p: ((p["bottom"] - 1).square() + p["top"] * p["middle"].square()).sum() / 2,
            "bottom": lambda p: ((p["bottom"] - p["middle"]).square() + p["bottom"].square()).sum() / 2,
        },
        points={"top": one / 4, "middle": one, "bottom": one / 2},
        graph=NESTED,
        upper="top",
        direct=torch.zeros(1),
        cotangents={},
        hessians={},
        cross={},
    )


NESTED = ProblemGraph.build(
    ["top", "middle", "bottom"],
    {"top": ["middle"], "middle": ["bottom"]},
    {"bottom": ["middle", "top"], "middle": ["top"]},
)


@pytest.mark.parametrize("upper", ["+0.5", "-0.5", "-2", "+1.5"])
def test_the_solve_of_a_middle_problem_lets_the_bottom_answer(upper: str) -> None:
    point = first_point(oracle(nested(upper), exact), upper="top")
    made = resolve(point, (torch.ones(1),), implicit_is_zero=False, budget=BUDGET)
    assert made.solved
    assert made.directions[0].quotient == pytest.approx(float(upper), abs=1e-4)


def test_a_large_middle_problem_is_refused_by_name() -> None:
    case = nested("-2")
    large = {name: (torch.ones(30) * row if name != "top" else row) for name, row in case.points.items()}
    point = first_point(oracle(Case(**{**case.__dict__, "points": large}), exact), upper="top")
    with pytest.raises(DoesNotApply, match=r"middle steers bottom.* 30 parameters are too many"):
        resolve(point, (torch.ones(1),), implicit_is_zero=False, budget=BUDGET)


def test_who_responds_is_who_reads_a_problem_that_changes() -> None:
    assert responding(NESTED, "top") == ("middle", "bottom")
    assert responding(NESTED, "middle") == ("bottom",)
    assert responding(CASES["Q5 diamond"]().graph, "top") == ("base", "left", "right")


def test_an_estimated_agreement_is_that_of_whole_vectors_where_directions_span_them() -> None:
    draws = torch.Generator().manual_seed(6)
    got, wanted = torch.randn(3, generator=draws), torch.randn(3, generator=draws)
    directions = torch.stack([got / got.norm(), *torch.randn(2, 3, generator=draws)], dim=1)
    made = agreement(directions, got, (directions.T @ wanted).tolist(), own=True)
    assert made.cosine == pytest.approx(float(torch.cosine_similarity(got, wanted, dim=0)))
    assert made.error == pytest.approx(float((got - wanted).norm() / wanted.norm()))


def test_solving_needs_no_loss_and_reaches_rounding() -> None:
    draws = torch.Generator().manual_seed(7)
    a = torch.randn(30, 30, generator=draws)
    h, b = a.T @ a / 30 + torch.eye(30), torch.randn(30, generator=draws)
    solution = solve(lambda x: h @ x - b + x**3, torch.zeros(30), 500)
    assert solution.solved and solution.gradients < 200
    root = torch.linalg.solve(h, b)
    for _ in range(50):
        root = root - torch.linalg.solve(h + torch.diag(3 * root**2), h @ root - b + root**3)
    assert torch.allclose(solution.theta, root, atol=1e-10)


def test_what_updates_settle_at_is_solved_for_even_through_a_stop_gradient() -> None:
    """A loss whose value falls where its gradient does not point."""

    def lower(p: Mapping[str, nn.Module]) -> Tensor:
        low, up = row_of(p["low"]), row_of(p["up"])  # type: ignore[arg-type]
        return (low.square() / 2 - up * low - 0.5 * low.detach() * low).sum()  # gradient 0.5 low - up

    up = torch.tensor([1.0, -2.0])
    made = report(
        program((Row(up), lambda p: row_of(p["low"]).square().sum() / 2), (Row(2 * up), lower), exact()),  # type: ignore[arg-type]
        budget=BUDGET,
    )
    assert isinstance(made.resolved, Resolved) and made.resolved.solved
    # theta* = 2 lam, so that dF/dlam = 4 lam; the Hessian of the loss, 1, gives half of it
    assert made.resolved.directions[0].quotient == pytest.approx(4 * float(up.norm()), rel=1e-5)
    assert made.resolved.directions[0].slope == pytest.approx(2 * float(up.norm()), rel=1e-5)


def nested_reports(mode: Nested, budget: int | None) -> dict[str, PointReport]:
    """Of both upper problems of Q8."""
    made = oracle(NESTED_CASES["Q8 nested"](), lambda: Implicit(Exact(0.0, 100), ForwardOverReverse(), "after", mode))
    return {point.upper: examine(step, point, budget) for step, point, _ in points(made, 1, 1)}


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_a_nested_program_is_judged_by_the_formula_and_by_re_solving(budget: int | None) -> None:
    full, own = nested_reports("full", budget), nested_reports("own_loss", budget)
    assert all(report.holds for report in (*full.values(), *own.values()))
    assert full["top"].verdict.grade == full["middle"].verdict.grade == GOOD
    assert "to rounding" in full["middle"].verdict.text or budget is None, "its hypergradient is 0 there"
    assert own["top"].verdict.grade == LENGTH, "off by what the bottom problem answers"
    assert (
        own["top"].verdict.reasons[-1].startswith("middle: nested: own_loss takes second derivatives of its own loss")
    )
    assert "total loss" in full["top"].references[0] and "total loss" not in own["top"].references[0]


def test_two_problems_that_answer_each_other_are_refused_by_name() -> None:
    reads = {"top": ("one", "two"), "one": ("low", "top"), "two": ("low",), "low": ("one", "two")}
    graph = ProblemGraph.build(
        list(reads),
        {"top": ["one"], "one": ["low"], "two": ["low"]},
        {"low": ["one", "two"], "one": ["top"], "two": ["top"]},
    )

    def loss(name: str) -> Callable[[Mapping[str, Tensor]], Tensor]:
        return lambda p: sum((p[name] - p[other] / 4 - 1).square().sum() for other in reads[name])  # type: ignore[return-value]

    case = Case(
        {name: loss(name) for name in reads},
        dict.fromkeys(reads, torch.ones(1)),
        graph,
        "top",
        torch.ones(1),
        {},
        {},
        {},
    )
    made = report(
        oracle(case, lambda: Implicit(Exact(0.0, 100), ForwardOverReverse(), "after", "own_loss")),
        budget=BUDGET,
        upper="top",
    )
    assert isinstance(made.resolved, str) and "two and one answer each other" in made.resolved
    assert made.verdict.grade == UNKNOWN
    assert any("leaves out how problems below a steered one answer it" in reason for reason in made.verdict.reasons)


@pytest.mark.parametrize("kind", [kind for kind in PROGRAMS if "four levels" not in kind])
def test_a_nested_program_is_solved_as_newtons_method_solves_it(kind: str) -> None:
    made = nested_program(*PROGRAMS[kind], decay=0.3)
    engine = made.engine("top", exact_of("full"), record_all=True)
    solved_program = SolvedProgram(VerificationPoint(engine, "top"), BUDGET)
    at = solved_program.lam
    rows = []
    for unit in torch.eye(len(at)):
        sides = [at + s * 1e-3 * unit for s in (1, -1)]
        ahead, behind = (
            solved_program.upper_loss(side, solved_program.solved(side, solved_program.start)) for side in sides
        )
        rows.append((ahead - behind) / 2e-3)
    assert relative(torch.tensor(rows), made.slope("top")) < 1e-4


def test_a_lower_problem_that_fits_its_batch_leaves_nothing_to_differentiate() -> None:
    def lower(p: Mapping[str, Problem]) -> Tensor:
        low, up = row_of(p["low"]), row_of(p["up"])
        return (up.exp() * (low - 1).square()).sum()

    made = report(
        program(
            (Row(torch.zeros(2)), lambda p: row_of(p["low"]).square().sum()), (Row(torch.zeros(2)), lower), identity()
        ),
        budget=BUDGET,
    )
    assert made.verdict.grade == UNKNOWN and made.verdict.text.startswith("not 0, while")
    assert any("fits its batch" in reason for reason in made.verdict.reasons)


def test_the_dense_solve_sees_the_weight_decay_and_keeps_its_largest_residual() -> None:
    alpha, theta, upper, lower = ridge_losses()

    def decayed(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1, weight_decay=0.5)  # type: ignore[arg-type]

    engine = program((Row(alpha), upper), (Row(theta), lower), exact(), optimizer=decayed, unroll_steps=400)
    level = first_point(engine, 400).levels()["low"]
    solver = ExactOrFinest()
    solver(level, tuple(torch.ones_like(t) for t in level.theta), None)
    assert solver.optimality is not None and solver.optimality.gradient < 1e-8 and solver.optimality.step < 1e-8
    solver.residual = 0.5
    solver(level, tuple(torch.ones_like(t) for t in level.theta), None)
    assert solver.residual == 0.5 and not solver.reached
