"""Tangents that are kept from one inner loop to the next, against difference quotients of all loops run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mlorun
from mlorun.assemble import build
from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.errors import ConfigError
from mlorun.hypergradient.estimators.first_order import FirstOrder
from mlorun.hypergradient.estimators.forward import Forward, Tangents
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.inner_loop import Iterate
from mlorun.run.device import Precision
from mlorun.verify.suite import relative
from tests.hypergradient.test_unrolled import CPU, VARIANTS, Program, T

LOOPS = 3
# a start that upper problems decide is refused; a parameter that nobody trains depends on nothing
CHOSEN = [name for name in VARIANTS if "start" not in name and "does not hold" not in name]


def made(estimate: Any, variant: str) -> Program:
    """A program of several inner loops; its upper problem moves far at each step."""
    program = Program(estimate, **VARIANTS[variant])
    program.engine.train_iters *= LOOPS
    program.upper.optimizer.param_groups[0]["lr"] = 1.0
    program.engine.probe()
    torch.manual_seed(7)
    return program


def trained(variant: str, kept: float) -> tuple[list[Tensor], Tensor]:
    """The upper problem's parameters in every loop, each in a row, and its last hypergradient."""
    program = made(Forward(100, kept=kept), variant)
    path = [row(program.upper.theta)]
    gradients: list[Tensor] = []
    program.upper.grad_callback = lambda: gradients.append(  # type: ignore[method-assign]
        row([torch.zeros_like(p) if p.grad is None else p.grad for p in program.upper.theta])
    )
    program.upper.param_callback = lambda: path.append(row(program.upper.theta))  # type: ignore[method-assign]
    program.engine.run()
    return path[:LOOPS], gradients[-1]


def loss_along(variant: str, path: list[Tensor]) -> float:
    """F after the last loop, where loop i runs under path[i]; nobody differentiates through anything."""
    program = made(FirstOrder(), variant)
    seen: list[float] = []
    loss = program.upper.training_step

    def watched(batch: Any) -> Tensor:
        value = loss(batch)
        seen.append(float(value.detach()))
        return value

    program.upper.training_step = watched  # type: ignore[method-assign]
    put(program.upper, path[0])
    program.upper.custom_optimizer_step = lambda: put(  # type: ignore[method-assign]
        program.upper, path[min(len(seen), LOOPS - 1)]
    )
    program.engine.run()
    return seen[LOOPS - 1]


def row(some: Iterable[Tensor]) -> Tensor:
    return torch.cat([t.detach().flatten() for t in some])


def put(problem: Problem, values: Tensor) -> None:
    with torch.no_grad():
        nn.utils.vector_to_parameters(values, problem.theta)


@pytest.mark.parametrize("variant", CHOSEN)
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_it_is_the_difference_quotient_of_all_loops_of_which_older_ones_count_less(variant: str, kept: float) -> None:
    path, got = trained(variant, kept)
    assert relative(path[-1], path[0]) > 1e-3, "the hyperparameters move"
    h = 1e-5
    wanted = []
    for unit in torch.eye(len(got), dtype=got.dtype):
        ahead, behind = (
            loss_along(variant, [x + s * h * kept ** (LOOPS - 1 - i) * unit for i, x in enumerate(path)])
            for s in (1, -1)
        )
        wanted.append((ahead - behind) / (2 * h))
    assert relative(got, torch.tensor(wanted)) < 1e-6


def test_without_a_share_it_is_forward_mode_of_the_last_loop() -> None:
    _, of_all = trained("momentum", 1.0)
    _, of_the_last = trained("momentum", 0.0)
    assert relative(of_the_last, of_all) > 0.1


def test_a_row_that_is_not_finite_begins_anew_and_others_go_on() -> None:
    rows = tuple(Iterate((torch.tensor([1.0, x]),), ({"momentum_buffer": torch.tensor([y, 4.0])},)) for x, y in
                 [(2.0, 3.0), (torch.nan, 3.0), (2.0, torch.inf)])  # fmt: skip
    kept = Forward(100, kept=0.5).kept_tangents(Tangents({"upper": rows}))
    assert kept is not None
    assert [row.theta[0].tolist() for row in kept.rows["upper"]] == [[0.5, 1.0], [0.0, 0.0], [0.0, 0.0]]
    assert [row.state[0]["momentum_buffer"].tolist() for row in kept.rows["upper"]] == [[1.5, 2.0], [0, 0], [0, 0]]


@pytest.mark.parametrize("kept", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(kept: float) -> None:
    with pytest.raises(ConfigError, match="kept must lie"):
        Forward(100, kept=kept)


def test_a_start_that_upper_problems_decide_is_refused() -> None:
    program = Program(Forward(100, kept=1.0), **VARIANTS["learned start"])
    program.engine.train_iters = 2 * T
    with pytest.raises(ConfigError, match="initial_parameters starts its inner loops anew") as caught:
        program.engine.run()
    assert "hypergradient=forward" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["experiment=mwn_digits", "classifier.hypergradient=real_time", "classifier.roll_back=true"], "rolls back"),
        (
            [
                "experiment=prior_of_penalties",
                "penalties.hypergradient=real_time",
                "~problems.penalties.hypergradient.solve",
            ],
            "reads the optimum of fit",
        ),
    ],
)
def test_loops_that_are_no_one_course_are_refused_before_a_run(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        build(mlorun.compose(overrides))
    assert "hypergradient=forward" in (caught.value.fix or "")


def test_a_start_that_a_hook_writes_is_named() -> None:
    program = Program(Forward(100, kept=1.0), **VARIANTS["sgd"])

    def halve() -> None:
        with torch.no_grad():
            for parameter in program.lower.theta:
                parameter.mul_(0.5)

    program.lower.on_inner_loop_start = halve  # type: ignore[method-assign]
    program.engine.train_iters = 2 * T
    program.engine.run()
    assert any("were written between two updates" in remark for remark in program.engine.remarks.values())


def test_options_that_are_learned_only_after_a_warm_up_are_refused() -> None:
    class Plain(Problem):
        def training_step(self, batch: Any) -> Tensor:
            loss: Tensor = self.module(torch.ones(1, 1)).sum()
            return loss

    class Learned(Plain):
        def optimizer_options(self) -> dict[str, Tensor]:
            return {"lr": torch.tensor(0.1)}

    def engine(kept: float) -> Any:
        problems = [
            Plain(name="upper", module=nn.Linear(1, 1), optimizer=lambda p: torch.optim.SGD(p, lr=0.1)),
            Learned(
                name="lower",
                module=nn.Linear(1, 1),
                optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
                hypergradient=Forward(100, kept=kept),
                update_schedule=UpdateSchedule(unroll_steps=2, warmup_steps=3),
            ),
        ]
        graph = ProblemGraph.build(["upper", "lower"], {"upper": ["lower"]})
        return Engine(problems, graph, device=CPU, precision=Precision("fp32", CPU), train_iters=4)

    with pytest.raises(ConfigError, match="not during its warm-up"):
        engine(1.0)
    engine(0.0)


@pytest.mark.parametrize(
    ("estimate", "start"),
    [
        (Forward(100, kept=1.0), False),  # a start that upper problems decide is refused
        *(
            (estimate, start)
            for estimate in (Forward(100, kept=0.0), Unrolled(None, "sqrt"))
            for start in (False, True)
        ),
    ],
)
def test_a_loop_whose_steps_were_all_left_out_depends_on_its_start_alone(estimate: Any, start: bool) -> None:
    program = Program(estimate, lambda p: torch.optim.SGD(p, lr=0.1), start=start, steps=1)
    program.engine.probe()
    lower, recorder = program.lower, program.engine.recorder
    recorder.start_inner_loop("lower")
    lower.restart_inner_loop()
    recorder.before_loss("lower", lower.get_batch(), None)
    recorder.leave_out("lower")
    upper = program.upper
    assert upper.stream is not None
    loss = upper.training_step(upper.stream.at(upper.stream.state_dict()))
    v = iter(torch.autograd.grad(loss, lower.theta))
    begun = {id(parameter) for parameter in upper.module.start}
    # the loop starts at 2 start
    wanted = [2 * next(v) if id(parameter) in begun else torch.zeros_like(parameter) for parameter in upper.theta]
    got = row(program.engine.gradient("upper"))
    assert bool(got.any()) == start
    assert torch.allclose(got, row(wanted))
