"""Small two-level programs of a test's own, on the engine, in float32 unless said otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.run.device import Precision
from mlorun.verify.oracles import Case, Row
from mlorun.verify.point import VerificationPoint
from mlorun.verify.program import PointReport, examine, points

Loss = Callable[[Mapping[str, Problem]], Tensor]
UPPER, LOWER = "up", "low"


class Given(Problem):
    """A problem whose loss is a function of all problems."""

    def __init__(self, *, loss: Loss, **problem: Any) -> None:
        super().__init__(**problem)
        self.given = loss

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        return self.given(self._peers)


def row_of(problem: Problem) -> Tensor:
    """Of a problem whose module is a Row."""
    assert isinstance(problem.module, Row) or hasattr(problem.module, "row")
    row: Tensor = problem.module.row  # type: ignore[assignment]
    return row


def program(
    upper: tuple[nn.Module, Loss],
    lower: tuple[nn.Module, Loss],
    hypergradient: Hypergradient,
    *,
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda theta: torch.optim.SGD(theta, lr=0.1),
    unroll_steps: int = 1,
) -> Engine:
    """up steers low."""
    graph = ProblemGraph.build([UPPER, LOWER], {UPPER: [LOWER]})

    def problem(name: str, module: nn.Module, loss: Loss, **more: Any) -> Given:
        return Given(name=name, module=module, loss=loss, **more)

    frozen = problem(UPPER, *upper, optimizer=lambda theta: torch.optim.SGD(theta, lr=1e-9))
    schedule = UpdateSchedule(unroll_steps=unroll_steps)
    moving = problem(LOWER, *lower, optimizer=optimizer, hypergradient=hypergradient, update_schedule=schedule)
    return engine([frozen, moving], graph)


def engine(problems: list[Any], graph: ProblemGraph) -> Engine:
    """On the CPU, recording everything."""
    device = torch.device("cpu")
    return Engine(problems, graph, device=device, precision=Precision("fp32", device), train_iters=400, record_all=True)


def oracle(case: Case, hypergradient: Callable[[], Hypergradient], lr: float = 0.1) -> Engine:
    """A closed form, at its optimum."""
    return engine(case.problems(hypergradient, lr), case.graph)


def first_point(made: Engine, steps: int = 1, upper: str | None = None) -> VerificationPoint:
    """Right before the last step of `upper`, or of anybody who is one, within so many global steps."""
    taken = points(made, 1 if steps == 1 else 2, steps)
    return next(point for _, point, last in taken if last and upper in (None, point.upper))


def report(made: Engine, *, steps: int = 1, budget: int | None = None, upper: str | None = None) -> PointReport:
    """Of that point."""
    return examine(steps, first_point(made, steps, upper), budget)


def identity() -> Hypergradient:
    """T1-T2."""
    return Implicit(Identity(1.0), ForwardOverReverse(), "after", "full")


def ridge_losses() -> tuple[Tensor, Tensor, Loss, Loss]:
    """(alpha, theta at its optimum, F, L): ridge regression with a penalty for each feature, F on other data."""
    draws = torch.Generator().manual_seed(3)
    x, xv = torch.randn(12, 4, generator=draws), torch.randn(12, 4, generator=draws)
    truth = torch.randn(4, generator=draws)
    y, yv = x @ truth + 0.3 * torch.randn(12, generator=draws), xv @ truth
    alpha = 0.3 * torch.randn(4, generator=draws)
    theta = torch.linalg.solve(x.T @ x / 12 + torch.diag(alpha.exp()), x.T @ y / 12)

    def upper(p: Mapping[str, Problem]) -> Tensor:
        low = row_of(p[LOWER])
        return (xv.to(low) @ low - yv.to(low)).square().mean() / 2

    def lower(p: Mapping[str, Problem]) -> Tensor:
        low, up = row_of(p[LOWER]), row_of(p[UPPER])
        return (x.to(low) @ low - y.to(low)).square().mean() / 2 + (up.exp() * low.square()).sum() / 2

    return alpha, theta, upper, lower
