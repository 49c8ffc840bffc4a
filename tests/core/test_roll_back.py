"""A problem that returns to where its inner loop started."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlorun.core.program.problem import Problem
from mlorun.core.roll_back import RollBack
from mlorun.data.stream import stream
from mlorun.verify.point import equal


class Fit(Problem):
    def training_step(self, batch: Any) -> Tensor:
        return self(batch[0]).square().mean()


def step(problem: Problem) -> None:
    loss = problem.training_step(problem.get_batch())
    assert isinstance(loss, Tensor)
    loss.backward()
    problem.update.step(loss, problem.custom_optimizer_step)
    problem.update.clear_gradient()


def present(problem: Problem) -> list[Any]:
    assert problem.stream is not None
    update = problem.update.iterate(copy=True)
    rate = problem.optimizer.param_groups[0]["lr"]
    buffers = [buffer.clone() for buffer in problem.module.buffers()]
    return [update.theta, update.state, buffers, rate, problem.stream.state_dict()]


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.Adam])
def test_parameters_buffers_optimizer_schedule_and_stream_return_as_often_as_asked(make: Any) -> None:
    torch.manual_seed(0)
    data = stream((torch.randn(12, 3),), batch_size=4, seed=0, name="fit", device=torch.device("cpu"))
    problem = Fit(
        name="fit",
        module=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)),
        optimizer=make,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
        stream=data,
    )
    roll_back = RollBack(problem)
    step(problem)
    roll_back.keep()
    kept, after = present(problem), []
    for _ in range(2):
        for _ in range(2):
            step(problem)
        after.append(present(problem))
        assert not any(equal(a, b) for a, b in zip(kept, after[-1], strict=True))
        roll_back.restore()
        for one, other in zip(kept, present(problem), strict=True):
            assert equal(one, other)
    assert equal(*after)
