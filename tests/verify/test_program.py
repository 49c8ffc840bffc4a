"""Verifying a program: right estimators pass, wrong ones fail, and nothing is disturbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from rich.console import Console

import mlorun
from mlorun.core.engine import Engine
from mlorun.core.program.problem import loss_of
from mlorun.core.replay.views import default_dtype
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.vectors import Vector
from mlorun.run.device import Precision
from mlorun.verify.comparison import compare
from mlorun.verify.oracles import CASES, Row
from mlorun.verify.point import equal
from mlorun.verify.program import examine, points
from mlorun.verify.rerun import loop_again
from mlorun.verify.table import show_point
from tests.verify.programs import first_point, program, ridge_losses

pytestmark = pytest.mark.usefixtures("empty_folder")

SMALL = ["experiment=mwn_digits", "classifier.module.sizes=[64,10]", "engine.train_iters=10"]


def engine_of(*overrides: str) -> Engine:
    return mlorun.build(mlorun.compose([*SMALL, *overrides]), record_all=True)


class OffByOnePercent(Hypergradient):
    """An estimator with a mistake, and with side effects."""

    def __init__(self, right: Hypergradient, engine: Engine) -> None:
        self.right, self.engine = right, engine

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], Any]:
        parts, carry = self.right(level, v, carry)
        if v[0].dtype == torch.float32:
            parts = {name: vectors.scale(part, 1.02) for name, part in parts.items()}
            with torch.no_grad():
                self.engine.problems["classifier"].theta[0].add_(1e-6)
        return parts, carry


@pytest.mark.parametrize("option", ["t1t2", "neumann", "cg", "unrolled", "soba", "nystrom"])
def test_a_right_estimator_agrees_with_its_definition_and_leaves_no_trace(option: str) -> None:
    found = [examine(step, point) for step, point, _ in points(engine_of(f"classifier.hypergradient={option}"), 2, 10)]
    assert len(found) == 2
    for report in found:
        assert report.holds, report
        assert all(edge.error < edge.bound for edge in report.edges)
        assert report.cost.seconds > 0 and report.cost.peak_bytes > 0


def test_a_difference_through_a_stop_gradient_fails_and_is_explained() -> None:
    _, point, last = next(points(engine_of("classifier.hypergradient=darts"), 1, 5))
    assert last
    report = examine(1, point)
    assert not report.holds
    assert not report.disturbed
    assert "stop-gradients" in report.explanations[0]


def test_a_wrong_number_and_a_side_effect_are_found() -> None:
    engine = engine_of()
    classifier = engine.problems["classifier"]
    assert classifier.hypergradient is not None
    classifier.hypergradient = OffByOnePercent(classifier.hypergradient, engine)
    step, point, _ = next(points(engine, 1, 3))
    report = examine(step, point)
    assert report.edges[0].error == pytest.approx(0.02, rel=0.05)
    assert not report.edges[0].holds
    assert "parameters" in report.disturbed


def test_an_exact_estimator_is_the_implicit_function_theorems() -> None:
    engine = engine_of("classifier.hypergradient=exact", "classifier.hypergradient.solve.damping=0")
    # the Hessian of a linear classifier with weight decay is positive definite
    classifier = engine.problems["classifier"]
    classifier.optimizer.param_groups[0]["weight_decay"] = 0.1
    step, point, _ = next(points(engine, 1, 3))
    report = examine(step, point)
    assert report.edges[0].off_ift < 1e-3
    assert "dense Hessian" in report.optimality[0]


def test_verifying_does_not_change_the_run() -> None:
    def parameters(examined: bool) -> Vector:
        engine = engine_of("classifier.hypergradient=cg")
        if examined:
            for step, point, _ in points(engine, 3, 10):
                examine(step, point)
        engine.run()
        return vectors.copy(engine.problems["reweight"].theta + engine.problems["classifier"].theta)

    assert all(torch.equal(a, b) for a, b in zip(parameters(True), parameters(False), strict=True))


def test_estimators_are_compared_on_one_point_and_refusals_are_said() -> None:
    engine = engine_of()

    def with_solve(solve: Any) -> Mapping[str, Hypergradient]:
        return {"classifier": Implicit(solve, ForwardOverReverse(), "after", "full")}

    _, point, _ = next(points(engine, 1, 3))
    rows = list(
        compare(
            point,
            {
                "identity": lambda: with_solve(Identity(1.0)),
                "too small": lambda: with_solve(Exact(0.0, 10)),
            },
        )
    )
    assert rows[0].name == "identity" and rows[0].error > 0 and not rows[0].refused
    assert "too many" in rows[1].refused


@pytest.mark.parametrize("option", ["unrolled", "forward"])
@pytest.mark.parametrize("experiment", ["hpo_digits", "maml_sinusoid"])
def test_a_learned_rate_or_start_is_held_against_running_the_inner_loop_again(experiment: str, option: str) -> None:
    lower = {"hpo_digits": "classifier", "maml_sinusoid": "learner"}[experiment]
    overrides = [f"experiment={experiment}", f"{lower}.hypergradient={option}"]
    if experiment == "maml_sinusoid":
        overrides += [
            "meta.module.sizes=[1,4,1]",
            "learner.batch_size=2",
            f"learner.unroll_steps={1 + 2 * (option == 'unrolled')}",
        ]
    step, point, _ = next(points(mlorun.build(mlorun.compose(overrides), record_all=True), 1, 20))
    report = examine(step, point)
    assert report.holds
    said = next(line for line in report.references if "running its inner loop again" in line)
    assert float(said.rpartition(" ")[2]) < 1e-4
    assert all(edge.off_ift != edge.off_ift for edge in report.edges), "the optimum depends on neither"
    assert "off IFT: -, for the optimum of its loss depends on nobody above" in report.references[0]


def test_an_unrolled_hypergradient_that_is_off_is_seen_by_running_the_inner_loop_again() -> None:
    alpha, theta, upper, lower = ridge_losses()
    engine = program((Row(alpha), upper), (Row(theta + 1), lower), Unrolled(None, "iterates"), unroll_steps=4)
    point = first_point(engine, 8)
    right = point.reference({})
    assert (off := loop_again(point, right)) is not None and off < 1e-6
    wrong = {edge: vectors.scale(part, 1.1) for edge, part in right.items()}
    assert loop_again(point, wrong) == pytest.approx(1 - 1 / 1.1, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("Q4 three levels", {("fine", "pre"), ("pre", "s")}),
        ("Q5 diamond", {("left", "base"), ("right", "base"), ("left", "top"), ("base", "top")}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_edge_of_a_deeper_program_is_reported(name: str, edges: set[tuple[str, str]], dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        case = CASES[name]()
    problems = case.problems(
        lambda: Implicit(ConjugateGradient(20, 0.0, 1e-7, False), ForwardOverReverse(), "after", "full")
    )
    device = torch.device("cpu")
    engine = Engine(
        problems, case.graph, device=device, precision=Precision("fp32", device), train_iters=3, record_all=True
    )
    step, point, _ = next(points(engine, 1, 3))
    report = examine(step, point)
    assert {(edge.lower, edge.to) for edge in report.edges} == edges
    assert report.holds
    # the oracles' matrices are constants of their losses: those in float32 cannot be put in float64
    assert ("own precision" in report.references[0]) == (dtype == torch.float32)
    # at the optimum, conjugate gradients are exact
    assert all(edge.off_ift < 1e-3 for edge in report.edges)
    assert len(report.references) == len(point.nodes)


@pytest.mark.parametrize(
    ("overrides", "solved"),
    [
        (["classifier.optimizer.weight_decay=0.01"], True),  # positive definite in all directions that the data miss
        (["classifier.module.sizes=[64,200,10]"], False),
    ],
)
def test_a_reference_that_was_not_reached_is_marked(overrides: list[str], solved: bool) -> None:
    _, point, _ = next(points(engine_of(*overrides), 1, 1))
    report = examine(1, point)
    assert [edge.solved for edge in report.edges] == [solved]
    console = Console(width=130)
    with console.capture() as caught:
        show_point(console, report)
    assert (f"~{report.edges[0].off_ift:.1e}" in caught.get()) != solved


def test_a_constant_of_the_loss_is_taken_in_float64_too() -> None:
    engine = engine_of()
    reweight = engine.problems["reweight"]
    step = reweight.training_step

    def with_a_constant(batch: Any) -> Any:
        grid = torch.linspace(0, 3, 20)[:, None]
        return loss_of(step(batch), "reweight") + reweight(grid).mean()

    reweight.training_step = with_a_constant  # type: ignore[method-assign]
    _, point, _ = next(points(engine, 1, 1))
    report = examine(1, point)
    assert point.precision == "float64" and torch.get_default_dtype() == torch.float32
    assert 0 < report.edges[0].error < 1e-5


def test_nan_is_no_change_and_a_changed_number_is() -> None:
    broken = torch.tensor([float("nan"), 1.0])
    assert equal([broken], [broken.clone()])
    assert not equal([broken], [torch.tensor([float("nan"), 2.0])])
    assert not equal([broken], [torch.tensor([1.0, float("nan")])])
