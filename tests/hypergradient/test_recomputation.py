"""Losses that recompute: torch.utils.checkpoint in a lower loss gives the hypergradient that it gives without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.errors import GraphError
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.identity import Identity

Run = Callable[[nn.Module, Tensor], Tensor]


def kept(body: nn.Module, x: Tensor) -> Tensor:
    return body(x)


def recomputed(body: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(body, x, use_reentrant=False)


def reentrant(body: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(body, x, use_reentrant=True)


class Body(nn.Module):
    """With dropout, whose masks a recomputation must repeat."""

    def __init__(self, run: Run, reads: bool = False) -> None:
        super().__init__()
        self.run, self.first = run, nn.Linear(3, 3) if reads else nn.Identity()
        self.middle = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.3), nn.Linear(4, 4), nn.Softplus())
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.run(self.middle, self.first(x)))


class Penalty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor([-1.0, 0.3]))


def rows(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(10, 3, generator=draw), torch.randn(10, 1, generator=draw)


class Fit(Problem):
    def get_batch(self) -> Any:
        return rows(1)

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        decay, scale = self.penalty.module.strength.exp()
        return F.mse_loss(self(scale * x), y) + decay * sum(p.square().sum() for p in self.module.parameters())


class Judge(Problem):
    def get_batch(self) -> Any:
        return rows(2)

    def training_step(self, batch: Any) -> Tensor:
        return F.mse_loss(self.fit(batch[0]), batch[1])


def program(run: Run, estimate: Hypergradient, reads: bool = False) -> Engine:
    torch.manual_seed(3)
    fit = Fit(
        name="fit",
        module=Body(run, reads),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1, momentum=0.9),
        hypergradient=estimate,
        update_schedule=UpdateSchedule(unroll_steps=3),
    )
    judge = Judge(name="penalty", module=Penalty(), optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0))
    return Engine([judge, fit], {"u2l": {"penalty": ["fit"]}}, train_iters=3, seed=0)


def hypergradient(run: Run, estimate: Hypergradient) -> Tensor:
    engine = program(run, estimate)
    judge = engine.problems["penalty"]
    grads: list[Tensor] = []
    judge.grad_callback = lambda: grads.append(judge.theta[0].grad.clone())
    engine.run()
    return grads[-1]


ESTIMATES: dict[str, Callable[[], Hypergradient]] = {
    "unrolled": lambda: Unrolled(None, "iterates"),
    "recomputed iterates": lambda: Unrolled(None, "constant"),
    "forward": lambda: Forward(50, kept=0.0),
    "t1t2": lambda: Implicit(Identity(1.0), ForwardOverReverse(), "after", "full"),
    "before": lambda: Implicit(Identity(1.0), ForwardOverReverse(), "before", "full"),
    "cg": lambda: Implicit(ConjugateGradient(8, 0.1, 0.0, False), ForwardOverReverse(), "after", "full"),
    "darts": lambda: Implicit(Identity(1.0), CentralDifference(0.01, relative=False), "after", "full"),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_a_recomputed_lower_loss_has_the_hypergradient_of_one_that_is_kept(name: str) -> None:
    expected = hypergradient(kept, ESTIMATES[name]())
    assert float(expected.norm()) > 1e-3
    torch.testing.assert_close(hypergradient(recomputed, ESTIMATES[name]()), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reads", [False, True], ids=["of data", "of trained layers"])
def test_reentrant_recomputation_which_trains_nothing_inside_is_refused_with_its_line(reads: bool) -> None:
    with pytest.raises(GraphError, match=r"calls torch\.utils\.checkpoint with use_reentrant=True") as caught:
        program(reentrant, Unrolled(None, "iterates"), reads).probe()
    assert "test_recomputation.py:" in (caught.value.seen or "")
    assert caught.value.fix == "use_reentrant=False in that call"


def test_reentrant_recomputation_is_refused_in_a_single_problem_too() -> None:
    class Alone(Problem):
        def get_batch(self) -> Any:
            return rows(1)

        def training_step(self, batch: Any) -> Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

    def in_segments(body: nn.Module, x: Tensor) -> Tensor:
        return checkpoint_sequential(body, 2, x, use_reentrant=True)

    alone = Alone(name="alone", module=Body(in_segments), optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1))
    with pytest.raises(GraphError, match=r"alone calls torch\.utils\.checkpoint"):
        Engine([alone], train_iters=1).probe()


def test_reentrant_recomputation_of_a_frozen_part_is_let_through() -> None:
    body = Body(reentrant)
    body.middle.requires_grad_(False)

    class Alone(Problem):
        def get_batch(self) -> Any:
            return rows(1)

        def training_step(self, batch: Any) -> Tensor:
            return F.mse_loss(self(batch[0]), batch[1])

    alone = Alone(name="alone", module=body, optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1))
    Engine([alone], train_iters=1).probe()


def test_torch_has_its_own_checkpoint_back_after_a_replay_and_after_a_probe() -> None:
    before = dict(vars(torch.utils.checkpoint))
    engine = program(recomputed, Unrolled(None, "iterates"))
    engine.probe()
    engine.run()
    assert vars(torch.utils.checkpoint) == before
