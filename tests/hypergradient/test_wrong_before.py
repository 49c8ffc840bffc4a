"""Programs whose hypergradient was wrong without a word: right now, or refused, or pointed out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.data.stream import stream
from mlorun.errors import GraphError
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.draws import draw
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.penalty import BOME, F2SA
from mlorun.hypergradient.estimators.reinforce import Reinforce
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.identity import Identity

pytestmark = pytest.mark.usefixtures("float64")
CPU = torch.device("cpu")
X = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)).double()
Y = (X[:, 0] > 0).long()


class Numbers(nn.Module):
    """A few numbers to learn."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.tensor(values, dtype=torch.float64))


class Low(Problem):
    def training_step(self, batch: Any) -> Tensor:
        penalty = self.up.module.row[0].exp() * sum(p.square().sum() for p in self.module.parameters())
        return F.cross_entropy(self(batch[0]), batch[1]) + 0.01 * penalty


class Drawing(Low):
    def training_step(self, batch: Any) -> Tensor:
        mask = draw(torch.distributions.Bernoulli(logits=self.up.module.row[1].expand(3)))
        return F.cross_entropy(self(batch[0] * mask), batch[1])


class Up(Problem):
    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.low(batch[0]), batch[1])


def data(name: str, batch_size: int, rows: int = 24) -> Any:
    return stream((X[:rows], Y[:rows]), batch_size=batch_size, seed=0, name=name, device=CPU)


def program(
    estimate: Hypergradient,
    low: type[Problem] = Low,
    *,
    parts: int = 1,
    schedule: UpdateSchedule | None = None,
    steps: int = 1,
    lr: float = 0.5,
    numbers: tuple[float, float] = (0.5, 0.3),
    **engine: Any,
) -> Engine:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    lower = low(
        name="low",
        module=module,
        optimizer=lambda theta: torch.optim.SGD(theta, lr=lr),
        stream=data("low", 24),
        hypergradient=estimate,
        update_schedule=schedule or UpdateSchedule(unroll_steps=2),
    )
    upper = Up(
        name="up",
        module=Numbers(*numbers),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0),
        stream=data("up", 24 // parts),
        update_schedule=UpdateSchedule(gradient_accumulation=parts),
    )
    return Engine([upper, lower], {"u2l": {"up": ["low"]}}, train_iters=steps, seed=0, **engine)


ESTIMATES: dict[str, tuple[Callable[[], Hypergradient], type[Problem]]] = {
    "t1t2": (lambda: Implicit(Identity(1.0), ForwardOverReverse(), "after", "full"), Low),
    "f2sa": (lambda: F2SA(10.0, 0.0, 5, 0.1, True), Low),
    "bome": (lambda: BOME(50.0, 5, 0.1, True), Low),
    "evolution": (lambda: Evolution(4, 1e-3, 0), Low),
    "reinforce": (lambda: Reinforce("none", 0.9), Drawing),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_an_accumulated_upper_gradient_is_the_mean_of_those_of_its_parts(name: str) -> None:
    make, low = ESTIMATES[name]
    engine = program(make(), low, parts=3, steps=6, schedule=UpdateSchedule(warmup_steps=2))
    upper = engine.problems["up"]
    grads: list[Tensor] = []
    upper.grad_callback = lambda: grads.append(upper.module.row.grad.clone())
    parts: list[Tensor] = []
    for action in engine.actions():
        if action.problem == "up":
            parts.append(engine.gradient("up")[0])  # of the micro-batch alone
        if len(parts) == 3 and action.problem != "up":
            break
    assert float(grads[2].norm()) > 0
    torch.testing.assert_close(grads[2], sum(parts, torch.zeros(2)) / 3, rtol=1e-10, atol=1e-14)


class Penalized(Problem):
    """With a gradient penalty: the loss calls autograd itself."""

    def training_step(self, batch: Any) -> Tensor:
        x = batch[0].clone().requires_grad_()
        (slope,) = torch.autograd.grad(self(x)[:, 0].sum(), x, create_graph=True)
        strength, weight = self.up.module.row.exp()
        return weight * F.cross_entropy(self(x), batch[1]) + strength * slope.square().sum(dim=1).mean()


@pytest.mark.parametrize("growth", [0.0, 5.0])
def test_a_loss_with_a_gradient_penalty_is_differentiated_exactly_also_when_the_penalty_grows_later(
    growth: float,
) -> None:
    gradients = []
    for cross in (ForwardOverReverse(), DoubleBackward()):
        engine = program(Implicit(Identity(1.0), cross, "after", "full"), Penalized, steps=6, numbers=(-5.0, 0.0))
        for step in engine.steps():
            if step == 2:
                with torch.no_grad():
                    engine.problems["up"].theta[0][0] += growth
        gradients.append(engine.gradient("up")[0])
    assert float(gradients[1].norm()) > 0
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-14)


class LearnedRate(Low):
    def optimizer_options(self) -> Mapping[str, Tensor]:
        return {"lr": self.up.module.row[1].exp()}


class LearnedStart(Problem):
    def initial_parameters(self) -> Iterable[Tensor]:
        return (self.up.module.row[:1],)

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        (row,) = self.theta
        return (row - self.up.module.row[1]).square().sum()


def test_an_upper_problem_that_acts_in_two_ways_needs_an_estimator_of_both() -> None:
    with pytest.raises(GraphError, match="does not differentiate through its options") as caught:
        program(Implicit(Identity(1.0), ForwardOverReverse(), "after", "full"), LearnedRate).probe()
    assert caught.value.fix == "low.hypergradient=unrolled"
    program(Unrolled(None, "iterates"), LearnedRate).probe()


def chosen_start(estimate: Hypergradient, schedule: UpdateSchedule) -> Engine:
    low = LearnedStart(
        name="low",
        module=Numbers(0.0),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1),
        hypergradient=estimate,
        update_schedule=schedule,
    )

    class Square(Problem):
        def get_batch(self) -> None:
            return None

        def training_step(self, batch: None) -> Tensor:
            return self.low.module.row.square().sum()

    up = Square(name="up", module=Numbers(2.0, 1.0), optimizer=lambda theta: torch.optim.SGD(theta, lr=0.3))
    return Engine([up, low], {"u2l": {"up": ["low"]}}, train_iters=3)


def test_a_start_that_an_implicit_estimator_leaves_out_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    implicit = Implicit(ConjugateGradient(3, 0.0, 0.0, False), ForwardOverReverse(), "after", "full")
    chosen_start(implicit, UpdateSchedule()).probe()
    assert "does not depend on where the inner loop starts" in caplog.text
    caplog.clear()
    chosen_start(Unrolled(None, "iterates"), UpdateSchedule()).probe()
    assert not caplog.text


def test_roll_back_repeats_the_inner_loop_from_the_new_start() -> None:
    engine = chosen_start(Unrolled(None, "iterates"), UpdateSchedule(unroll_steps=3, roll_back=True))
    engine.run()
    start, target = engine.problems["up"].theta[0].detach()
    assert float(start) != 2.0
    expected = start
    for _ in range(3):
        expected = expected - 0.1 * 2 * (expected - target)
    assert float(engine.problems["low"].theta[0].detach()) == pytest.approx(float(expected), rel=1e-12)
    # what is recorded are these three updates, not those that were taken back
    on_start, on_target = engine.gradient("up")[0]
    assert float(on_start) == pytest.approx(float(2 * expected * 0.8**3), rel=1e-12)
    assert float(on_target) == pytest.approx(float(2 * expected * (1 - 0.8**3)), rel=1e-12)


def test_roll_back_repeats_the_inner_loop_at_the_new_learned_rate() -> None:
    engine = program(
        Unrolled(None, "iterates"), LearnedRate, steps=2, schedule=UpdateSchedule(unroll_steps=2, roll_back=True)
    )
    upper, lower = engine.problems["up"], engine.problems["low"]
    for group in upper.optimizer.param_groups:
        group["lr"] = 3.0
    before = [p.detach().clone() for p in lower.theta]
    engine.run()
    rate = float(upper.theta[0][1].detach().exp())
    assert lower.optimizer.param_groups[0]["lr"] == pytest.approx(rate, rel=1e-12)
    assert rate != pytest.approx(0.3)
    assert not any(map(torch.equal, before, lower.theta))


class Attention(Problem):
    """Through a fused kernel, which has no double backward."""

    def training_step(self, batch: Any) -> Tensor:
        rows = self(batch[0])[None, None].float()
        mixed = F.scaled_dot_product_attention(rows, rows, rows)
        return mixed.square().mean() * self.up.module.row[0].exp().float()


def test_forward_mode_through_a_kernel_without_second_derivatives_is_one_screen_with_a_fix() -> None:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.FLASH_ATTENTION):
        engine = program(Forward(10, kept=0.0), Attention, steps=4)
        with pytest.raises(GraphError, match="goes through a kernel whose double backward is missing") as caught:
            engine.run()
        assert "low.hypergradient=unrolled" in (caught.value.fix or "")
        engine = program(Unrolled(None, "iterates"), Attention, steps=4)
        engine.run()
        assert "by differences of gradients" in engine.adjoint.choices()["up <- low"]


class Undeclared(Low):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch) + 0.1 * self.other(batch[0]).square().mean()


def test_a_problem_that_is_read_and_not_declared_is_refused() -> None:
    engine = program(Implicit(Identity(1.0), ForwardOverReverse(), "after", "full"), Undeclared)

    class Other(Problem):
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    other = Other(
        name="other",
        module=nn.Linear(3, 2).double(),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1),
        stream=data("other", 24),
    )
    problems = [*engine.problems.values(), other]
    with pytest.raises(GraphError, match=r"Undeclared\.training_step reads self\.other") as caught:
        Engine(problems, {"u2l": {"up": ["low"]}}, train_iters=1).probe()
    assert "dependencies.l2u.other: [low]" in (caught.value.fix or "")


def test_a_parameter_has_one_problem() -> None:
    shared = nn.Linear(3, 2).double()

    class Fit(Problem):
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

    problems = [
        Fit(name=name, module=shared, optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1), stream=data(name, 8))
        for name in ("one", "two")
    ]
    with pytest.raises(GraphError, match="one and two both train one parameter"):
        Engine(problems, train_iters=1)
