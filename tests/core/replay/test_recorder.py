"""What is recorded of inner loops, in a program of three levels."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.solvers.identity import Identity


class Towards(Problem):
    """The square of the distance to other problems' numbers."""

    def __init__(self, *, others: tuple[str, ...], **problem: Any) -> None:
        super().__init__(**problem)
        self.others = others

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        (row,) = self.theta
        gaps = [row - self._peers[other].theta[0] for other in self.others]
        return sum((gap.square().sum() for gap in gaps), 0.1 * (row - 5.0).square().sum())


def program(memory: Literal["iterates", "sqrt"], u2l: dict[str, list[str]], low_reads: str) -> Engine:
    def problem(name: str, others: tuple[str, ...], **kwargs: Any) -> Towards:
        return Towards(
            name=name,
            module=nn.Linear(1, 1, bias=False),
            optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1),
            others=others,
            **kwargs,
        )

    torch.manual_seed(0)
    t1t2 = Implicit(Identity(1.0), ForwardOverReverse(), "after", "full")
    middle_reads = ("low", "top") if "middle" in u2l["top"] else ("low",)
    problems = [
        problem("top", ("middle",)),
        problem("middle", middle_reads, hypergradient=Unrolled(None, memory),
                update_schedule=UpdateSchedule(unroll_steps=4)),
        problem("low", (low_reads,), hypergradient=t1t2),
    ]  # fmt: skip
    return Engine(problems, {"u2l": u2l, "l2u": {"low": ["middle"], "middle": ["top"]}}, train_iters=4)


def test_every_update_remembers_the_lower_optima_that_it_saw() -> None:
    engine = program("iterates", {"top": ["low"]}, low_reads="top")
    seen: list[Tensor] = []
    for action in engine.actions():
        if action.problem == "middle":
            seen.append(engine.problems["low"].theta[0].detach().clone())
        if action.problem == "top":
            break
    updates = engine.recorder.views.history("middle").updates
    remembered = [update.lower_optima["low"][0] for update in updates]
    assert len({float(row) for row in seen}) == len(seen) == 4
    assert all(map(torch.equal, remembered, seen))


@pytest.mark.parametrize("nested", [False, True])
def test_a_problem_whose_gradient_is_more_than_its_loss_s_has_every_iterate_recorded(nested: bool) -> None:
    u2l = {"top": ["middle"], "middle": ["low"]} if nested else {"top": ["low"]}
    engine = program("sqrt", u2l, low_reads="middle" if nested else "top")
    for action in engine.actions():
        if action.problem == "top":
            break
    recorded = [update.iterate is not None for update in engine.recorder.views.history("middle").updates]
    assert recorded == ([True] * 4 if nested else [True, False, True, False])
