"""Verdicts: what is computed as defined may still be far from the derivative of the solved program."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch

from mlorun.core.program.problem import Problem
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.solvers.warm_step import WarmStep
from mlorun.verify.oracles import Row
from mlorun.verify.resolve import Agreement, Resolved
from mlorun.verify.verdict import FAR, GOOD, LENGTH, UNKNOWN, WRONG_WAY, Evidence, judge
from tests.verify.programs import identity, program, report, ridge_losses, row_of

LOWER_LR = 0.01


def exact() -> Implicit:
    return Implicit(Exact(0.0, 100), ForwardOverReverse(), "after", "full")


def test_at_an_optimum_the_exact_hypergradient_is_the_derivative_of_the_solved_program() -> None:
    alpha, theta, upper, lower = ridge_losses()
    made = report(program((Row(alpha), upper), (Row(theta), lower), exact()))
    assert made.verdict.grade == GOOD and "derivative of the solved program" in made.verdict.text
    assert made.optimality[0].startswith("low: norm of its gradient")


def test_far_from_the_optimum_the_implicit_formula_is_no_reference() -> None:
    alpha, theta, upper, lower = ridge_losses()
    made = report(program((Row(alpha), upper), (Row(-3 * theta + 2), lower), exact()))
    assert made.holds and made.edges[0].off_ift < 1e-4, "computed as defined, and by the very formula"
    assert made.verdict.grade == UNKNOWN and "no reference here; see --resolve" in made.verdict.text
    (reason,) = made.verdict.reasons
    assert "low is not solved at this point (norm of its gradient" in reason and "% of the parameters" in reason


def test_far_from_the_optimum_re_solving_says_how_far_the_formula_is_off() -> None:
    alpha, theta, upper, lower = ridge_losses()
    made = report(program((Row(alpha), upper), (Row(-3 * theta + 2), lower), exact()), budget=2000)
    assert isinstance(made.resolved, Resolved) and made.resolved.solved
    assert made.resolved.whole.error > 0.5 and made.verdict.grade in (FAR, WRONG_WAY)
    assert "derivative of the solved program" in made.verdict.text


def test_a_step_of_soba_that_is_too_long_points_the_wrong_way() -> None:
    alpha, theta, upper, lower = ridge_losses()
    soba = Implicit(WarmStep(2.0, 8, 0.0), ForwardOverReverse(), "after", "full")
    made = report(program((Row(alpha), upper), (Row(theta), lower), soba))
    assert made.holds, "computed as defined"
    assert made.edges[0].cosine < 0
    assert made.verdict.grade == WRONG_WAY and made.verdict.text.startswith("points the wrong way (cosine -")


def test_evolution_that_blurs_too_much_is_far_off() -> None:
    draws = torch.Generator().manual_seed(4)
    weights = torch.randn(6, generator=draws)
    goal = torch.full((6,), 2.0)
    alpha = torch.randn(6, generator=draws)

    made = report(
        program(
            (Row(alpha), lambda p: (row_of(p["low"]) - goal.to(row_of(p["low"]))).square().sum() / 2),
            (
                Row((5 * alpha).sin() * weights),
                lambda p: (
                    (row_of(p["low"]) - (5 * row_of(p["up"])).sin() * weights.to(row_of(p["low"]))).square().sum() / 2
                ),
            ),
            Evolution(100, 1.0, 0),
            optimizer=lambda theta: torch.optim.SGD(theta, lr=1.0),
        )
    )
    assert made.holds, "computed as defined"
    assert made.edges[0].cosine < 0.7
    assert made.verdict.grade in (FAR, WRONG_WAY)


def test_the_right_direction_at_the_wrong_length_is_said() -> None:
    theta = torch.tensor([1.0, 2.0, 3.0])
    made = report(
        program(
            (Row(theta), lambda p: row_of(p["low"]).square().sum() / 2),
            (Row(theta), lambda p: 5 * (row_of(p["low"]) - row_of(p["up"])).square().sum()),
            identity(),
            optimizer=lambda parameters: torch.optim.SGD(parameters, lr=LOWER_LR),
        )
    )
    assert made.verdict.grade == LENGTH and "10 times as long" in made.verdict.text
    assert made.verdict.reasons == ("low: its solve (Identity) leaves norm(H x - v) = 9 norm(v) here: x is not H^-1 v",)


@pytest.mark.parametrize(
    ("agreement", "grade"),
    [
        (Agreement(1.0, 0.01, 1.01), GOOD),
        (Agreement(0.95, 0.3, 0.9), LENGTH),
        (Agreement(0.95, 20.0, 20.0), LENGTH),
        (Agreement(0.95, 5e3, 5e3), FAR),
        (Agreement(0.35, 0.9, 0.4), FAR),
        (Agreement(0.24, 0.9, 1.0), FAR),
        (Agreement(-0.67, 2.0, 1.0), WRONG_WAY),
        (Agreement(math.nan, 1.0, 0.0), FAR),
        (Agreement(math.nan, 1.0, math.inf), FAR),
        (Agreement(math.nan, 0.0, 0.0), GOOD),
    ],
)
def test_a_cosine_and_a_length_are_graded(agreement: Agreement, grade: int) -> None:
    verdict = judge(Evidence(agreement, {}, [], None, None, ("for a reason",)))
    assert verdict.grade == grade and verdict.passes == (grade in (GOOD, LENGTH))
    assert verdict.reasons == (() if grade == GOOD else ("for a reason",))


def test_what_a_loss_detaches_of_its_own_parameters_is_a_reason() -> None:
    def lower(p: Mapping[str, Problem]) -> torch.Tensor:
        low, up = row_of(p["low"]), row_of(p["up"])
        return (low.square() / 2 - up * low - 0.5 * low.detach() * low).sum()

    up = torch.tensor([1.0, -2.0])
    made = report(
        program((Row(up), lambda p: row_of(p["low"]).square().sum() / 2), (Row(2 * up), lower), exact()),
    )
    assert made.edges[0].off_ift < 1e-4 and made.verdict.grade == UNKNOWN
    assert made.verdict.reasons[0].startswith("low: its loss detaches something that depends on its own parameters")


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_saddle_is_no_minimum(shift: float) -> None:
    signs = torch.tensor([1.0, -1.0])

    def lower(p: object) -> torch.Tensor:
        low, up = row_of(p["low"]), row_of(p["up"])  # type: ignore[index]
        return (signs.abs().to(low) * (low - up).square() * (1.0 if shift else signs.to(low))).sum() / 2

    made = report(
        program(
            (Row(torch.ones(2)), lambda p: (row_of(p["low"]) - 3).square().sum() / 2),
            (Row(torch.ones(2)), lower),
            exact(),
        )
    )
    assert any("no minimum" in reason for reason in made.verdict.reasons) == (shift == 0.0)
