"""A solve that did harm is said once, with its step and its number; it stays in the run's record."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.solver import Solver


class Low(Problem):
    """curvature . theta^2 / 2 - theta . lam"""

    curvature = torch.tensor([1.0, 1.0])

    def get_batch(self) -> Any:
        return 0

    def training_step(self, batch: Any) -> Tensor:
        theta = self.module.weight[0]
        return (self.curvature * theta**2).sum() / 2 - (theta * self.up.module.weight[0]).sum()


class Up(Problem):
    def get_batch(self) -> Any:
        return 0

    def training_step(self, batch: Any) -> Tensor:
        return (self.low.module.weight - 1).square().sum() + 0 * self.module.weight.sum()


class Doubled(ConjugateGradient):
    """Three times too long: the residual is twice v."""

    def __call__(self, level: Any, v: Any, carry: Any) -> Any:
        x, carry = super().__call__(level, v, carry)
        return tuple(3.0 * part for part in x), carry


def program(curvature: list[float], solve: Solver) -> Engine:
    torch.manual_seed(0)
    low = Low(
        name="low",
        module=nn.Linear(2, 1, bias=False),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1),
        hypergradient=Implicit(solve, DoubleBackward(), "after", "full"),
    )
    low.curvature = torch.tensor(curvature)  # type: ignore[misc]
    up = Up(name="up", module=nn.Linear(2, 1, bias=False), optimizer=lambda theta: torch.optim.SGD(theta, lr=0.01))
    return Engine([up, low], {"u2l": {"up": ["low"]}}, train_iters=6, log_every=2, seed=0)


def test_a_solve_that_did_harm_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    engine = program([1.0, 2.0], Doubled(5, 0.0, 0.0, warm_start=False))
    with caplog.at_level(logging.WARNING, "mlorun"):
        engine.run()
    (text,) = engine.reporter.remarks.values()
    assert text.startswith("up <- low: at step 2 the solve of H x = v has a residual of 2 v, and x = 0 has 1 v")
    assert caplog.text.count("residual") == 1
    again = program([1.0, 2.0], Doubled(5, 0.0, 0.0, warm_start=False))
    again.load_state_dict(engine.state_dict())
    assert again.reporter.remarks == engine.reporter.remarks


def test_conjugate_gradients_on_a_hessian_that_is_not_positive_name_it(caplog: pytest.LogCaptureFixture) -> None:
    engine = program([-1.0, -2.0], ConjugateGradient(5, 0.0, 0.0, warm_start=False))
    with caplog.at_level(logging.WARNING, "mlorun"):
        engine.run()
    assert caplog.text.count("its Hessian is not positive definite: conjugate gradients stopped early") == 1
    assert [text for text in engine.reporter.remarks.values() if "a residual of 1 v" in text]


def test_a_solve_that_works_is_not_remarked_on(caplog: pytest.LogCaptureFixture) -> None:
    engine = program([1.0, 2.0], ConjugateGradient(5, 0.0, 0.0, warm_start=False))
    with caplog.at_level(logging.WARNING, "mlorun"):
        engine.run()
    assert not engine.reporter.remarks
    assert not caplog.records
