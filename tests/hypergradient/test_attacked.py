"""Programs that were invented to break hypergradients, each against its loop written by hand: right, refused, or named.

The lower loss is t'At / 2 - t'(b sin(lam)) + sum(t^4) / 10, the upper one norm(t - 1)^2 + norm(lam)^2 / 20.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import ExponentialLR

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.data.stream import stream
from mlorun.errors import ConfigError, GraphError, MlorunError, RunError
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.solvers.identity import Identity

pytestmark = pytest.mark.usefixtures("float64")
A = torch.tensor([[2.0, 0.3], [0.3, 1.5]], dtype=torch.float64)
LAM = torch.tensor([0.7, -0.4], dtype=torch.float64)
THETA = torch.tensor([0.5, 0.2], dtype=torch.float64)
ONE = torch.ones(2, dtype=torch.float64)
RATE = 0.1

Update = Callable[[Tensor, Tensor, int], Tensor]  # t, its gradient, and which update, to the next t


def exact() -> Implicit:
    return Implicit(Exact(0.0, 100), ForwardOverReverse(), "after", "full")


def unrolled() -> Unrolled:
    return Unrolled(None, "iterates")


def darts(radius: float) -> Implicit:
    return Implicit(Identity(1.0), CentralDifference(radius, False), "after", "full")


class Row(nn.Module):
    """Two numbers to learn, and two that are frozen."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(values.clone())
        self.frozen = nn.Parameter(ONE.clone(), requires_grad=False)


def row(problem: Problem) -> Tensor:
    x = problem.module.x
    assert isinstance(x, Tensor)
    return x


def frozen(problem: Problem) -> Tensor:
    x = problem.module.frozen
    assert isinstance(x, Tensor)
    return x


def lower_loss(t: Tensor, lam: Tensor, b: Tensor = ONE) -> Tensor:
    return t @ A @ t / 2 - (t * lam.sin() * b).sum() + (t**4).sum() / 10


def slope(t: Tensor, lam: Tensor, b: Tensor = ONE) -> Tensor:
    return A @ t - lam.sin() * b + 0.4 * t**3


def upper_loss(t: Tensor, lam: Tensor) -> Tensor:
    return ((t - 1) ** 2).sum() + lam.square().sum() / 20


class Low(Problem):
    def get_batch(self) -> Any:
        return ONE

    def training_step(self, batch: Any) -> Tensor:
        return lower_loss(row(self), row(self.top), batch)


class Top(Problem):
    def get_batch(self) -> Any:
        return None

    def training_step(self, batch: Any) -> Tensor:
        return upper_loss(row(self.low), row(self))


class Watched(Top):
    """Keeps its first gradient."""

    first: Tensor | None = None

    def grad_callback(self) -> None:
        if self.first is None:
            self.first = self.module.x.grad.clone()


def program(
    estimate: Hypergradient,
    low: type[Problem] = Low,
    *others: Problem,
    module: nn.Module | None = None,
    optimizer: Callable[[Any], Optimizer] = lambda theta: SGD(theta, lr=RATE),
    top: type[Watched] = Watched,
    steps: int = 3,
    start: Tensor = LAM,
    low_options: Any = None,
    **engine: Any,
) -> Engine:
    lower = low(
        name="low",
        module=Row(THETA) if module is None else module,
        optimizer=optimizer,
        hypergradient=estimate,
        update_schedule=UpdateSchedule(unroll_steps=steps),
        **(low_options or {}),
    )
    upper = top(name="top", module=Row(start), optimizer=lambda theta: SGD(theta, lr=RATE))
    return Engine([upper, lower, *others], {"u2l": {"top": ["low"]}}, train_iters=steps, seed=0, **engine)


def given(engine: Engine) -> Tensor:
    """The first gradient of top in a run."""
    engine.run()
    top = engine.problems["top"]
    assert isinstance(top, Watched)
    assert top.first is not None
    return top.first


def by_hand(update: Update, steps: int = 3, b: Callable[[int], Tensor] = lambda k: ONE) -> Tensor:
    """The derivative of F after the loop, by differences of the whole loop."""

    def value(lam: Tensor) -> float:
        t = THETA
        for k in range(steps):
            t = update(t, slope(t, lam, b(k)), k)
        return float(upper_loss(t, lam))

    h = 1e-5
    return torch.tensor([(value(LAM + h * e) - value(LAM - h * e)) / (2 * h) for e in torch.eye(2).double()])


def descend(t: Tensor, g: Tensor, k: int) -> Tensor:
    return t - RATE * g


def close(found: Tensor, truth: Tensor) -> bool:
    return torch.allclose(found, truth, rtol=1e-7, atol=1e-9)


# right


class Refilled(Low):
    """Batches in one and the same memory."""

    memory = ONE.clone()
    taken = 0

    def get_batch(self) -> Any:
        self.taken += 1
        return self.memory.copy_(ONE * self.taken)


class Relisted(Refilled):
    """Batches in one and the same list."""

    batch: ClassVar[list[Tensor]] = []

    def get_batch(self) -> Any:
        self.taken += 1
        self.batch[:] = [ONE * self.taken]
        return self.batch

    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch[0])


@pytest.mark.parametrize("low", [Refilled, Relisted])
@pytest.mark.parametrize("estimate", [unrolled, lambda: Forward(9, kept=0.0)])
def test_a_batch_in_memory_that_is_filled_again_is_kept_as_it_was(low: type[Problem], estimate: Any) -> None:
    # the probe takes the first batch
    assert close(given(program(estimate(), low)), by_hand(descend, b=lambda k: ONE * (k + 2)))


class Teacher(Problem):
    """Runs by itself towards 2."""

    def get_batch(self) -> Any:
        return None

    def training_step(self, batch: Any) -> Tensor:
        return (self.module.x - 2).square().sum()


class Taught(Low):
    def training_step(self, batch: Any) -> Tensor:
        return lower_loss(row(self), row(self.top), row(self.teacher).detach())


def test_a_problem_that_a_loss_takes_for_a_constant_is_read_as_each_update_saw_it() -> None:
    teacher = Teacher(name="teacher", module=Row(0.3 * ONE), optimizer=lambda theta: SGD(theta, lr=0.2))
    found = given(program(unrolled(), Taught, teacher))
    assert close(found, by_hand(descend, b=lambda k: 2 - 1.7 * ONE * 0.6**k))


def test_what_the_optimizer_does_not_hold_is_a_constant_of_the_optimum() -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.body = (nn.Parameter(part.clone()) for part in THETA.split(1))

        @property
        def x(self) -> Tensor:
            return torch.cat([self.head, self.body])

    module = Parts()
    engine = program(exact(), module=module, optimizer=lambda theta: SGD([module.head], lr=RATE), steps=150)
    mask = torch.tensor([1.0, 0.0])
    assert close(given(engine), by_hand(lambda t, g, k: t - RATE * g * mask, steps=150))
    assert [p.numel() for p in engine.problems["low"].theta] == [1]


def test_the_rate_of_a_linearization_before_the_step_is_the_rate_of_that_step() -> None:
    estimate = Implicit(Identity("lr"), ForwardOverReverse(), "before", "full")
    scheduled = {"scheduler": lambda optimizer: ExponentialLR(optimizer, 0.5)}
    assert close(given(program(estimate, steps=1, low_options=scheduled)), by_hand(descend, steps=1))


def test_an_update_that_was_left_out_is_no_part_of_the_inner_loop() -> None:
    class Broken(Low):
        taken = 0

        def get_batch(self) -> Any:
            self.taken += 1
            return ONE * (float("nan") if self.taken == 3 else 1.0)  # the second one after the probe's

    found = given(program(unrolled(), Broken, skips=3))
    assert close(found, by_hand(descend, steps=2))


class Sliced(Low):
    """Adds a gradient penalty by torch.func."""

    def training_step(self, batch: Any) -> Tensor:
        t, lam = row(self), row(self.top)
        along = torch.func.jvp(lambda x: (x * t).sin() * t, (lam.detach(),), (ONE,))[1]
        return lower_loss(t, lam, batch) + (along.square() * lam).sum()


def test_a_transform_of_torch_func_in_a_loss_is_no_stop_gradient(caplog: pytest.LogCaptureFixture) -> None:
    def value(lam: Tensor) -> float:
        t = THETA
        for _ in range(3):
            leaf = t.clone().requires_grad_()
            along = (LAM * leaf).cos() * leaf * leaf
            (g,) = torch.autograd.grad(lower_loss(leaf, lam) + (along.square() * lam).sum(), leaf)
            t = t - RATE * g
        return float(upper_loss(t, lam))

    h = 1e-5
    truth = torch.tensor([(value(LAM + h * e) - value(LAM - h * e)) / (2 * h) for e in torch.eye(2).double()])
    assert close(given(program(unrolled(), Sliced)), truth)
    assert not caplog.records


@pytest.mark.parametrize("estimate", [unrolled, exact])
def test_a_compiled_module_is_differentiated_through(estimate: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(THETA.clone())

        def forward(self, lam: Tensor) -> Tensor:
            return (self.x * lam.sin()).sum()

    class Compiled(Low):
        def training_step(self, batch: Any) -> Tensor:
            t = self.module.x
            return t @ A @ t / 2 - self(self.top.module.x) + (t**4).sum() / 10

    steps = 3 if estimate is unrolled else 150
    compiled = cast(nn.Module, torch.compile(Net(), backend="aot_eager"))
    truth = by_hand(descend, steps=steps)
    assert torch.allclose(given(program(estimate(), Compiled, module=compiled, steps=steps)), truth, rtol=1e-6)


def test_a_reference_in_float64_draws_the_random_numbers_of_the_program() -> None:
    class Drawing(Low):
        def training_step(self, batch: Any) -> Tensor:
            t, lam = row(self), row(self.top)
            draws = torch.rand_like(t), torch.randn(2, dtype=t.dtype), torch.empty_like(t).normal_()
            return sum(torch.normal(draw, 1.0).square() @ t for draw in draws) + lam.sum()  # type: ignore[return-value]

    engine = program(darts(0.01), Drawing, module=Row(THETA).float(), steps=1)
    engine.problems["top"].module.float()
    engine.run()
    views, snapshots = engine.recorder.views, engine.recorder.views.history("low").last
    own = views.loss("low", snapshots, {}).detach()
    wide = views.to(torch.float64).loss("low", snapshots, {}).detach()
    assert wide.dtype == torch.float64
    assert float(wide) == pytest.approx(float(own), rel=1e-6)


# named, with the size of the error


def say(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


class Masked(Low):
    def grad_callback(self) -> None:
        self.module.x.grad[1] = 0


@pytest.mark.parametrize("where", ["hook", "callback"])
def test_gradients_that_are_changed_after_the_loss_are_named_with_their_error(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = Row(THETA)
    if where == "hook":
        module.x.register_hook(lambda g: g * torch.tensor([1.0, 0.0]))
    engine = program(exact(), Masked if where == "callback" else Low, module=module)
    engine.run()
    g = slope(THETA, LAM)
    assert f"low: the gradient of its loss, evaluated again, is {100 * abs(g[1]) / g.norm():.2g} % off" in say(caplog)
    assert any("evaluated again" in remark for remark in engine.remarks.values())


def test_noise_that_begins_late_is_named_and_replayed_from_then_on(caplog: pytest.LogCaptureFixture) -> None:
    class Noisy(Low):
        def training_step(self, batch: Any) -> Tensor:
            noise = torch.from_numpy(np.random.randn(2)) if self.step >= 2 else ONE
            return lower_loss(row(self), row(self.top), noise)

    engine = program(unrolled(), Noisy, log_every=1)
    engine.train_iters = 6
    engine.run()
    assert "low: the gradient of its loss, evaluated again, is" in say(caplog)
    views = engine.recorder.views
    assert len({float(views.loss("low", views.history("low").last, {}).detach()) for _ in range(3)}) == 1


class Drifting(Problem):
    """Another problem, whose callback writes a frozen parameter of the lower module."""

    def get_batch(self) -> Any:
        return None

    def training_step(self, batch: Any) -> Tensor:
        return self.module.x.square().sum()

    def param_callback(self) -> None:
        with torch.no_grad():
            frozen(self.low).mul_(1.5)


class Anchored(Low):
    def training_step(self, batch: Any) -> Tensor:
        return lower_loss(row(self), row(self.top), frozen(self))


class Reset(Low):
    """Forgets its parameters after every epoch of two batches."""

    def get_batch(self) -> Any:
        super(Low, self).get_batch()
        return ONE

    def epoch_callback(self) -> None:
        with torch.no_grad():
            self.module.x.zero_()


def rows() -> Any:
    return stream((torch.zeros(4, 1),), batch_size=2, seed=0, name="low", device=torch.device("cpu"))


@pytest.mark.parametrize("estimate", [unrolled, lambda: Evolution(1, 0.1, 0)])
@pytest.mark.parametrize("low", [Anchored, Reset])
def test_updates_that_cannot_be_computed_again_are_named_with_their_error(
    low: type[Problem], estimate: Any, caplog: pytest.LogCaptureFixture
) -> None:
    others = [Drifting(name="other", module=Row(ONE), optimizer=lambda theta: SGD(theta, lr=RATE))]
    options = {"stream": rows()} if low is Reset else None
    engine = program(estimate(), low, *(others if low is Anchored else []), low_options=options, steps=4)
    engine.run()
    assert "low: an update of its inner loop, computed again from what was recorded, ends elsewhere" in say(caplog)
    assert " %). Causes: " in say(caplog)


def test_tangents_say_that_parameters_were_written_between_updates(caplog: pytest.LogCaptureFixture) -> None:
    program(Forward(9, kept=0.0), Reset, low_options={"stream": rows()}).run()
    assert "low: its parameters were written between two updates of an inner loop" in say(caplog)


def test_tangents_that_go_on_from_a_saved_state_are_named_for_nothing(caplog: pytest.LogCaptureFixture) -> None:
    before, after = (program(Forward(9, kept=0.0), steps=4) for _ in range(2))
    for done in before.steps():
        if done == 2:
            state = deepcopy(before.state_dict())
    for engine in (after, before):  # a new one, as resume has it, and one that goes back
        engine.load_state_dict(state)
        engine.run()
    assert not caplog.records


def test_a_projection_after_the_update_is_named(caplog: pytest.LogCaptureFixture) -> None:
    class Projected(Low):
        def param_callback(self) -> None:
            with torch.no_grad():
                self.module.x.clamp_(max=0.3)

    engine = program(exact(), Projected)
    engine.run()
    assert say(caplog).count("low: Projected.param_callback writes its parameters") == 1
    assert any("param_callback" in remark for remark in engine.remarks.values())


def test_a_start_that_a_hook_writes_is_named_where_the_loop_is_repeated(caplog: pytest.LogCaptureFixture) -> None:
    class Copied(Low):
        def on_inner_loop_start(self) -> None:
            with torch.no_grad():
                self.module.x.copy_(self.top.module.x)

    def run(roll_back: bool) -> str:
        caplog.clear()
        engine = program(unrolled(), Copied)
        low = engine.problems["low"]
        schedule = UpdateSchedule(unroll_steps=3, roll_back=roll_back)
        again = Copied(
            name="low", module=low.module, optimizer=low.optimizer, hypergradient=unrolled(), update_schedule=schedule
        )
        Engine([engine.problems["top"], again], {"u2l": {"top": ["low"]}}, train_iters=3, seed=0).run()
        return say(caplog)

    assert "Copied.on_inner_loop_start writes its parameters" in run(roll_back=True)
    assert "on_inner_loop_start" not in run(roll_back=False)


def test_decoupled_weight_decay_is_named_where_the_loss_alone_is_differentiated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def engine(estimate: Hypergradient, decay: float) -> Engine:
        return program(estimate, optimizer=lambda theta: AdamW(theta, lr=RATE, weight_decay=decay))

    for quiet in (engine(exact(), 0.0), engine(unrolled(), 0.5)):
        quiet.run()
    assert not caplog.records
    engine(exact(), 0.5).run()
    assert "low: the weight decay of AdamW (0.5) is that of no objective" in say(caplog)


class Detaching(Low):
    def training_step(self, batch: Any) -> Tensor:
        t, lam = row(self), row(self.top)
        return ((t - lam) ** 2 * (1 + (lam * t.detach()).exp())).sum() / 2


class Wavy(Low):
    def training_step(self, batch: Any) -> Tensor:
        t, lam = row(self), row(self.top)
        return ((300 * t).sin() * lam / 300 + t**2 / 2).sum()


class Far(Low):
    """In float32 and far from 0, where a step of 0.01 is rounded."""

    def training_step(self, batch: Any) -> Tensor:
        t, lam = row(self), row(self.top)
        return ((t - 3e4) ** 2 / 2 + lam * (t - 3e4) ** 2 / 1e3 + lam * t).sum()


@pytest.mark.parametrize(
    ("low", "at", "why"),
    [
        (Detaching, THETA, "sees through stop-gradients"),
        (Wavy, THETA, "too large for how the loss curves"),
        (Far, torch.tensor([3e4, 2.9e4]), "too small for the parameters' precision"),
    ],
)
def test_a_central_difference_of_the_right_direction_and_the_wrong_length_is_named_with_its_cause(
    low: type[Problem], at: Tensor, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind = torch.float32 if low is Far else torch.float64
    program(darts(0.01), low, module=Row(at).to(kind), start=LAM[:1] if low is not Far else LAM, steps=1).run()
    assert "the central difference is " in say(caplog)
    assert why in say(caplog)


# refused


class Changing(Low):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch.mul_(1.3))

    def get_batch(self) -> Any:
        return ONE.clone()


class Embedding(Low):
    def training_step(self, batch: Any) -> Tensor:
        return (self.module(torch.tensor([0, 1])) - self.top.module.x).square().sum()


class Reads(Watched):
    def training_step(self, batch: Any) -> Tensor:
        return sum((p - 1).abs().square().sum() for p in self.low.module.parameters())


class Complex(Low):
    def training_step(self, batch: Any) -> Tensor:
        z, lam = self.module.z, self.top.module.x
        return (z.abs().square()).sum() - (z.real * lam[0] + z.imag * lam[1]).sum()


class Imaginary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Parameter(torch.tensor([0.5 + 0.2j], dtype=torch.complex128))


class Freezing(Low):
    def grad_callback(self) -> None:
        self.module.x.requires_grad_(False)


class Replacing(Low):
    def param_callback(self) -> None:
        self.module.x = nn.Parameter(self.module.x.detach() * 1)


class Flat(Low):
    def training_step(self, batch: Any) -> Tensor:
        return (self.module.x.sum() - self.top.module.x.sin().sum()).square()


def with_hook(theta: Any) -> Optimizer:
    optimizer = SGD(theta, lr=RATE)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def hooked() -> nn.Module:
    module = Row(THETA)
    module.x.register_hook(lambda g: 2 * g)
    return module


def half_still(theta: Any) -> Optimizer:
    x, *rest = theta
    return SGD([{"params": [x]}, {"params": rest, "lr": 0.0}], lr=RATE)


REFUSED: dict[str, tuple[Callable[[], Engine], type[MlorunError], str]] = {
    "a batch changed in place": (lambda: program(exact(), Changing), GraphError, "changes its batch in place"),
    "a weight that the forward pass writes": (
        lambda: program(exact(), Embedding, module=nn.Embedding(3, 2, max_norm=0.5), top=Reads),
        GraphError,
        "writes parameters in place",
    ),
    "sparse gradients": (
        lambda: program(exact(), Embedding, module=nn.Embedding(3, 2, sparse=True), top=Reads),
        GraphError,
        "sparse gradients",
    ),
    "complex parameters": (
        lambda: program(exact(), Complex, module=Imaginary(), top=Reads),
        GraphError,
        "low has complex parameters",
    ),
    "a lazy layer": (
        lambda: program(exact(), module=nn.LazyLinear(1)),
        ConfigError,
        "without a shape",
    ),
    "a parameter frozen during the run": (lambda: program(exact(), Freezing), GraphError, "frozen after the start"),
    "a parameter replaced": (lambda: program(exact(), Replacing), GraphError, "was replaced by another tensor"),
    "a singular Hessian that rounding makes regular": (
        lambda: program(exact(), Flat, steps=30),
        RunError,
        "singular, or too near it",
    ),
    "a hook of an optimizer that is unrolled": (
        lambda: program(unrolled(), optimizer=with_hook),
        ConfigError,
        "hooks of low's optimizer",
    ),
    "a hook on a parameter that is unrolled": (
        lambda: program(unrolled(), module=hooked()),
        ConfigError,
        "hooks of low's parameters",
    ),
    "a group that never moves": (
        lambda: program(exact(), Embedding, module=nn.Bilinear(1, 1, 2), optimizer=half_still, top=Reads),
        GraphError,
        "have a learning rate of 0",
    ),
    "an optimizer of something else": (
        lambda: program(exact(), optimizer=lambda theta: SGD([nn.Parameter(ONE)], lr=RATE)),
        ConfigError,
        "holds none of its trainable parameters",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_by_name(name: str) -> None:
    make, kind, words = REFUSED[name]
    with pytest.raises(kind, match=words):
        make().run()


@pytest.mark.parametrize(
    "estimate", [unrolled, exact, lambda: Forward(9, kept=0.0), lambda: darts(0.01), lambda: UpdateMap(3)]
)
def test_a_plain_program_is_named_for_nothing(estimate: Any, caplog: pytest.LogCaptureFixture) -> None:
    program(estimate(), log_every=1).run()
    assert not caplog.records
