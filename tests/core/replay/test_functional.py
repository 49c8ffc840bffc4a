"""Every loss as a pure function: what a replay sees is what its step saw, and nothing is left of it."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.core.replay.snapshot import Snapshot
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.identity import Identity

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A number times how often it was called, counted in place."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.tensor([3.0]))
        self.register_buffer("count", torch.zeros(()))

    def forward(self) -> Tensor:
        self.count.add_(1)
        return self.row * self.count.clone()


class Alone(Problem):
    def get_batch(self) -> None:
        return None

    def training_step(self, batch: Any) -> Tensor:
        return self().sum()


def alone(module: nn.Module, kind: type[Problem] = Alone) -> FunctionalProgram:
    problem = kind(name="alone", module=module, optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1))
    return FunctionalProgram({"alone": problem}, CPU)


def value(program: FunctionalProgram, *snapshots: Snapshot, values: Mapping[str, Any] | None = None) -> float:
    with program.replay():
        return float(program.loss("alone", snapshots, values or {}).detach())


def test_a_replay_has_the_buffers_that_its_step_saw_however_often_and_leaves_the_present_ones() -> None:
    module = Counting()
    program = alone(module)
    snapshot = program.snapshot(None, None)
    for _ in range(4):
        module()
    present = module.count
    assert [value(program, snapshot) for _ in range(3)] == [3.0] * 3
    assert module.count is present
    assert float(present) == 4
    assert value(program, program.snapshot(None, None)) == 3 * 5


class Noisy(Alone):
    def training_step(self, batch: Any) -> Tensor:
        noise = [random.random(), float(np.random.rand()), float(torch.rand(()))]
        return self.module.row.sum() * (noise[0] + 10 * noise[1] + 100 * noise[2])


def test_a_replay_draws_what_its_step_drew_and_puts_every_generator_back() -> None:
    program = alone(Counting(), Noisy)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    snapshot = program.snapshot(None, None)
    drawn = float(program.problems["alone"].training_step(None).detach())
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(2), np.random.seed(2), torch.manual_seed(2)
    assert [value(program, snapshot) for _ in range(2)] == [drawn] * 2
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_snapshots_of_other_random_numbers_are_told_apart() -> None:
    class Drawing(Alone):
        def training_step(self, batch: Any) -> Tensor:
            return self.module.row.sum() * torch.rand(())

    program = alone(Counting(), Drawing)
    program.leave_host_generators()
    snapshots, drawn = [], []
    for _ in range(3):
        snapshots.append(program.snapshot(None, None))
        drawn.append(float(program.problems["alone"].training_step(None).detach()))
    assert len(set(drawn)) == 3
    assert [value(program, snapshot) for snapshot in snapshots] == drawn


def test_a_replay_has_the_modes_of_its_step_and_leaves_the_present_ones() -> None:
    module = nn.Sequential(nn.Dropout(1.0), nn.Linear(2, 1))

    class OnOnes(Alone):
        def training_step(self, batch: Any) -> Tensor:
            return self(torch.ones(2)).sum()

    program = alone(module, OnOnes)
    bias = float(module[1].bias.detach())
    training = program.snapshot(None, None)
    module.eval()
    evaluating = program.snapshot(None, None)
    assert value(program, training) == bias
    assert value(program, evaluating) != bias
    assert not any(m.training for m in module.modules())


def test_a_parameter_in_two_places_is_put_into_both() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
            self.other.weight = self.one.weight

        def forward(self) -> Tensor:
            return self.other(self.one(torch.ones(1)))

    program = alone(Tied())
    snapshot = program.snapshot(None, None)
    assert value(program, snapshot, values={"alone": (torch.full((1, 1), 3.0),)}) == 9


def test_a_replay_under_autocast_is_in_the_parameters_own_precision() -> None:
    class Product(Alone):
        def training_step(self, batch: Any) -> Tensor:
            return self(torch.linspace(0.1, 0.7, 5)).sum()

    torch.manual_seed(0)
    program = alone(nn.Linear(5, 3), Product)
    snapshot = program.snapshot(None, None)
    plain = value(program, snapshot)
    with torch.autocast("cpu", torch.bfloat16):
        assert float(program.problems["alone"].training_step(None).detach()) != plain
        assert value(program, snapshot) == plain


class Low(Problem):
    """Pulled towards the upper problem's number times one that is drawn by Python."""

    drawn = 0.0

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: Any) -> Tensor:
        self.drawn = random.uniform(1, 2)
        return (self.module.row - self.drawn * self.up.module.row).square().sum() / 2


class Up(Problem):
    def get_batch(self) -> None:
        return None

    def training_step(self, batch: Any) -> Tensor:
        return self.low.module.row.sum()


@pytest.mark.parametrize(
    "make", [lambda: Implicit(Identity(1.0), DoubleBackward(), "after", "full"), lambda: Unrolled(None, "iterates")]
)
def test_a_hypergradient_sees_what_the_lower_loss_drew_from_python(make: Any) -> None:
    estimate: Hypergradient = make()
    random.seed(0)
    low = Low(name="low", module=Counting(), optimizer=lambda p: torch.optim.SGD(p, lr=1.0), hypergradient=estimate)
    up = Up(name="up", module=Counting(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    engine = Engine([up, low], {"u2l": {"up": ["low"]}}, train_iters=1)
    drawn, got = [], []
    step = up.training_step

    def watched(batch: Any) -> Tensor:
        drawn.append(low.drawn)
        return step(batch)

    engine.probe()
    up.training_step = watched  # type: ignore[method-assign]
    up.grad_callback = lambda: got.append(up.theta[0].grad.item())  # type: ignore[method-assign]
    engine.run()
    assert got == pytest.approx([drawn[0]], rel=1e-6)


def test_a_loss_with_frozen_layers_can_be_taken_in_float64() -> None:
    class Fit(Problem):
        def get_batch(self) -> Tensor:
            return torch.linspace(-1, 1, 6).reshape(3, 2)

        def training_step(self, batch: Any) -> Tensor:
            return (self(batch) * self.up.module.row).square().mean()

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
    module[0].requires_grad_(False)
    low = Fit(
        name="low",
        module=module,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        hypergradient=Implicit(Identity(1.0), DoubleBackward(), "after", "full"),
        update_schedule=UpdateSchedule(),
    )

    class Reads(Problem):
        def get_batch(self) -> Tensor:
            return torch.ones(2, 2)

        def training_step(self, batch: Any) -> Tensor:
            return self.low(batch).square().mean()

    up = Reads(name="up", module=Counting(), optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    engine = Engine([up, low], {"u2l": {"up": ["low"]}}, train_iters=1)
    engine.run()
    level = Level(engine.recorder.views.view("low", ("up",)))
    double = level.in_double()
    assert double is not None
    assert double.theta[0].dtype == double.gradient[0].dtype == torch.float64
    assert float(double.loss(double.theta).detach()) == pytest.approx(float(level.loss(level.theta).detach()), rel=1e-6)
    assert all(p.dtype == torch.float32 for p in module.parameters())
