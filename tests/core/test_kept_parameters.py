"""Parameters that a problem keeps outside its module: `theta` is replayed as the module is, all else is refused."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.errors import GraphError
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.run.device import Precision

CPU = torch.device("cpu")
RATE, STEPS = 0.1, 5


class Row(nn.Module):
    def __init__(self, at: float) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.full((2,), at, dtype=torch.float64))


class Upper(Problem):
    def get_batch(self) -> None:
        return None

    def training_step(self, batch: Any) -> Tensor:
        return (self.low.theta[0] - 2).square().sum() / 2


class Ridge(Problem):
    """|x - 1|^2 / 2 + exp(lam)' x^2 / 2, its parameters and lam read in a way of its own."""

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: Any) -> Tensor:
        x, lam = self.read()
        return (x - 1).square().sum() / 2 + (lam.exp() * x.square()).sum() / 2

    def read(self) -> tuple[Any, Any]:
        return self.module.row, self.up.module.row


class ByTheta(Ridge):
    def read(self) -> tuple[Any, Any]:
        return self.theta[0], self.up.theta[0]


class KeepsItsOwn(Ridge):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kept = list(self.module.parameters())

    def read(self) -> tuple[Any, Any]:
        return self.kept[0], self.up.module.row


class KeepsTheUpper(Ridge):
    kept: list[Tensor]

    def read(self) -> tuple[Any, Any]:
        return self.module.row, self.kept[0]


class KeepsAStart(Ridge):
    kept: list[Tensor]

    def initial_parameters(self) -> Iterable[Tensor]:
        return self.kept


def program(low: type[Ridge], hypergradient: Hypergradient) -> Engine:
    torch.manual_seed(0)

    def make(kind: type[Problem], name: str, **kwargs: Any) -> Any:
        return kind(name=name, module=Row(0.3), optimizer=lambda theta: torch.optim.SGD(theta, lr=RATE), **kwargs)

    upper = make(Upper, "up")
    lower = make(low, "low", hypergradient=hypergradient, update_schedule=UpdateSchedule(unroll_steps=STEPS))
    if low in (KeepsTheUpper, KeepsAStart):
        lower.kept = list(upper.module.parameters())
    graph = ProblemGraph.build(["up", "low"], {"up": ["low"]}, None)
    return Engine([upper, lower], graph, device=CPU, precision=Precision("fp32", CPU), train_iters=STEPS)


@pytest.mark.parametrize(
    "make", [lambda: Unrolled(None, "iterates"), lambda: Implicit(Exact(0.0, 100), DoubleBackward(), "after", "full")]
)
def test_theta_is_what_is_put_in_its_place(make: Any) -> None:
    moved = []
    for kind in (Ridge, ByTheta):
        engine = program(kind, make())
        engine.probe()
        engine.run()
        moved.append(engine.problems["up"].module.row.detach() - 0.3)
    assert float(moved[0].abs().min()) > 1e-3
    assert torch.equal(*moved)


def test_after_a_hypergradient_theta_is_the_live_parameters_again() -> None:
    engine = program(ByTheta, Unrolled(None, "iterates"))
    engine.run()
    for problem in engine.problems.values():
        assert problem.theta[0] is problem.module.row


@pytest.mark.parametrize(
    ("kind", "function", "whose"),
    [
        (KeepsItsOwn, "training_step", "low"),
        (KeepsTheUpper, "training_step", "up"),
        (KeepsAStart, "initial_parameters", "up"),
    ],
)
def test_parameters_that_are_kept_elsewhere_are_refused(kind: type[Ridge], function: str, whose: str) -> None:
    message = rf"{kind.__name__}\.{function} reads parameters of {whose} that were kept elsewhere"
    with pytest.raises(GraphError, match=message) as caught:
        program(kind, Unrolled(None, "iterates")).probe()
    assert "self.module.parameters()" in (caught.value.fix or "")
