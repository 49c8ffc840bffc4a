"""Kernels whose second derivatives are wrong without a word: noticed, replaced, named; and no false alarm.

The references are difference quotients, in float64, of the whole first gradient in parameters and hyperparameters.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.core.program.update import UpdateRule
from mlorun.core.replay.views import ProblemView, default_dtype
from mlorun.errors import GraphError
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.crosses.reference import Reference
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.neumann import Neumann
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector
from mlorun.run.device import Precision
from tests.hypergradient.given import GivenProblem

CPU = torch.device("cpu")
RATE, TERMS, DECAY, H = 0.1, 5, 0.5, 1e-5


class Cut(torch.autograd.Function):
    """Softplus with a backward pass that is right, and cut off from further ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.sigmoid(ctx.saved_tensors[0])


class Twice(torch.autograd.Function):
    """Softplus with a backward pass that can be differentiated, and no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * torch.sigmoid(ctx.saved_tensors[0])


class Missing(torch.autograd.Function):
    """Softplus with a backward pass whose own derivative raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return Raising.apply(grad, ctx.saved_tensors[0])


class Raising(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor) -> Tensor:
        return grad * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("the derivative of this backward is not implemented")


class Kernel(nn.Module):
    def __init__(self, kernel: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x)


def cut() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), Kernel(Cut.apply), nn.Linear(4, 1))


def weight_norm() -> nn.Module:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    return nn.Sequential(normed, nn.Softplus(), nn.Linear(4, 1))


class Numbers(nn.Module):
    def __init__(self, *values: float) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.tensor(values))


def rows(seed: int, count: int = 12) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(count, n, generator=draw, dtype=torch.float64) for n in (3, 1))
    kind = torch.get_default_dtype()
    return x.to(kind), y.to(kind)


def lower_loss(
    model: Callable[[Tensor], Tensor], row: Tensor, held: Tensor | None = None, stop: bool = False
) -> Tensor:
    """Weighted by a function of the losses if `stop`, which are detached, or are `held`."""
    x, y = rows(1)
    outputs = model(x * row[0].exp())
    losses = (outputs - y).square() + row[1] * outputs.square()
    if stop:
        constant = losses.detach() if held is None else held
        losses = torch.sigmoid(row[1] * constant) * losses
    return losses.mean()


class Fit(Problem):
    stop = False

    def get_batch(self) -> Any:
        return None

    def training_step(self, batch: Any) -> Tensor:
        return lower_loss(self, self.up.module.row, stop=self.stop)


class Stopped(Fit):
    stop = True


class Up(Problem):
    def get_batch(self) -> Any:
        return None

    def training_step(self, batch: Any) -> Tensor:
        x, y = rows(2)
        return (self.fit(x) - y).square().mean()


def program(
    module: nn.Module, estimate: Hypergradient, *, fit: type[Problem] = Fit, steps: int = 1, **more: Any
) -> Engine:
    lower = fit(
        name="fit",
        module=module,
        optimizer=lambda theta: torch.optim.SGD(theta, lr=RATE, weight_decay=DECAY),
        hypergradient=estimate,
        update_schedule=UpdateSchedule(unroll_steps=steps),
    )
    upper = Up(name="up", module=Numbers(0.2, 0.7), optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0))
    return Engine([upper, lower], {"u2l": {"up": ["fit"]}}, train_iters=steps, seed=0, **more)


def run(engine: Engine) -> Tensor:
    """The gradient of the upper problem at the last step."""
    upper, grads = engine.problems["up"], []
    upper.grad_callback = lambda: grads.append(upper.theta[0].grad.clone())
    engine.run()
    return grads[-1]


class Quotients:
    """First gradients of the lower loss as a function of all its numbers, and quotients of them."""

    def __init__(self, module: nn.Module, stop: bool = False) -> None:
        self.module, self.stop = module, stop
        self.names = [n for n, _ in module.named_parameters()]
        self.like = [p.detach().clone() for p in module.parameters()]
        self.row = torch.tensor([0.2, 0.7])

    def model(self, theta: Tensor) -> Callable[[Tensor], Tensor]:
        parts = theta.split([t.numel() for t in self.like])
        values = {n: p.view_as(t) for n, p, t in zip(self.names, parts, self.like, strict=True)}
        return lambda x: functional_call(self.module, values, (x,))

    def held(self, theta: Tensor) -> Tensor:
        x, y = rows(1)
        outputs = self.model(theta)(x * self.row[0].exp()).detach()
        return (outputs - y).square() + self.row[1] * outputs.square()

    def gradient(self, theta: Tensor, row: Tensor, held: Tensor | None) -> tuple[Tensor, Tensor]:
        theta, row = theta.detach().requires_grad_(), row.detach().requires_grad_()
        loss = lower_loss(self.model(theta), row, held, self.stop)
        slope, on_row = torch.autograd.grad(loss, (theta, row))
        return slope, on_row

    def second(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """H with the optimizer's decay, (P, P), and B, (2, P); with what is detached held."""
        held = self.held(theta) if self.stop else None
        pairs = [
            (self.gradient(theta + H * e, self.row, held), self.gradient(theta - H * e, self.row, held))
            for e in torch.eye(len(theta))
        ]
        h, b = (torch.stack([(ahead[i] - behind[i]) / (2 * H) for ahead, behind in pairs]) for i in (0, 1))
        return (h + h.T) / 2 + DECAY * torch.eye(len(theta)), b.T

    def start(self) -> Tensor:
        return torch.cat([t.flatten() for t in self.like])

    def path(self, steps: int) -> list[Tensor]:
        path = [self.start()]
        for _ in range(steps):
            held = self.held(path[-1]) if self.stop else None
            path.append(path[-1] - RATE * (self.gradient(path[-1], self.row, held)[0] + DECAY * path[-1]))
        return path

    def pull(self, theta: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_()
        x, y = rows(2)
        return torch.autograd.grad((self.model(theta)(x) - y).square().mean(), theta)[0]

    def implicit(self, solve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        theta = self.path(1)[-1]
        h, b = self.second(theta)
        return -b @ solve(h, self.pull(theta))

    def unrolled(self, steps: int) -> Tensor:
        *path, last = self.path(steps)
        p, total = self.pull(last), torch.zeros(2)
        for theta in reversed(path):
            h, b = self.second(theta)
            total = total - RATE * (b @ p)
            p = p - RATE * (h @ p)
        return total

    def fixed_point(self, iterations: int) -> Tensor:
        before, last = self.path(1)
        h, b = self.second(before)
        p, total = self.pull(last), torch.zeros(2)
        for _ in range(iterations + 1):
            total = total - RATE * (b @ p)
            p = p - RATE * (h @ p)
        return total


def truncated(h: Tensor, v: Tensor) -> Tensor:
    step = torch.eye(len(h)) - RATE * h
    return RATE * sum((torch.linalg.matrix_power(step, k) @ v for k in range(TERMS + 1)), torch.zeros_like(v))


def relative(got: Tensor, expected: Tensor) -> float:
    return ((got - expected).norm() / expected.norm()).item()


FORWARD, DOUBLE = ForwardOverReverse(), DoubleBackward()
IMPLICIT: dict[str, tuple[Solver, Cross, Callable[[Tensor, Tensor], Tensor]]] = {
    "t1t2": (Identity(1.0), FORWARD, lambda h, v: v),
    "double": (Identity(1.0), DOUBLE, lambda h, v: v),
    "neumann": (Neumann(TERMS, RATE), FORWARD, truncated),
    "cg": (ConjugateGradient(60, 0.0, 1e-12, False), FORWARD, torch.linalg.solve),
    "exact": (Exact(0.0, 100), FORWARD, torch.linalg.solve),
    "darts": (Identity(1.0), CentralDifference(1e-3, relative=False), lambda h, v: v),
}
MODULES = {"once_differentiable": cut, "weight_norm": weight_norm}


@pytest.mark.parametrize("preset", IMPLICIT)
@pytest.mark.parametrize("kernel", MODULES)
def test_an_implicit_hypergradient_through_a_wrong_kernel_is_that_of_the_true_gradient(
    kernel: str, preset: str, caplog: pytest.LogCaptureFixture
) -> None:
    module = MODULES[kernel]()
    solve, cross, definition = IMPLICIT[preset]
    expected = Quotients(module).implicit(definition)
    engine = program(module, Implicit(solve, cross, "after", "full"))
    with caplog.at_level(logging.WARNING, "mlorun"):
        assert relative(run(engine), expected) < 1e-6
    (in_use,) = engine.adjoint.choices().values()
    assert bool(caplog.records) == (in_use != f"{type(solve).__name__} x {type(cross).__name__}")
    if preset == "darts":
        assert not caplog.records
    if solve.curvature:
        assert "fit: double backward is" in caplog.text
        assert in_use.endswith(", Hessian products by differences of gradients")
    if kernel == "once_differentiable" and preset in ("t1t2", "double"):
        assert "HeldCentralDifference, in place of" in in_use


@pytest.mark.parametrize("kernel", MODULES)
@pytest.mark.parametrize("memory", ["iterates", "constant"])
def test_unrolling_a_wrong_kernel_takes_differences(kernel: str, memory: Any, caplog: pytest.LogCaptureFixture) -> None:
    module = MODULES[kernel]()
    expected = Quotients(module).unrolled(3)
    engine = program(module, Unrolled(None, memory), steps=3)
    with caplog.at_level(logging.WARNING, "mlorun"):
        assert relative(run(engine), expected) < 1e-6
    assert "% off the change of the gradient" in caplog.text
    assert engine.adjoint.choices() == {"up <- fit": "Unrolled, second derivatives by differences of gradients"}


@pytest.mark.parametrize("kernel", MODULES)
def test_the_fixed_point_of_an_update_through_a_wrong_kernel_takes_differences(kernel: str) -> None:
    module = MODULES[kernel]()
    expected = Quotients(module).fixed_point(4)
    assert relative(run(program(module, UpdateMap(4))), expected) < 1e-6


@pytest.mark.parametrize("kernel", MODULES)
def test_forward_mode_through_a_wrong_kernel_is_one_screen_with_a_fix(kernel: str) -> None:
    with pytest.raises(GraphError, match="whose double backward is missing or wrong") as caught:
        run(program(MODULES[kernel](), Forward(50, kept=0.0)))
    assert "% off" in (caught.value.seen or "")
    assert (caught.value.fix or "").startswith("fit.hypergradient=unrolled")


def test_unrolling_and_forward_mode_know_a_kernel_that_raises() -> None:
    def missing() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), Kernel(Missing.apply), nn.Linear(4, 1))

    expected = Quotients(missing()).unrolled(2)
    engine = program(missing(), Unrolled(None, "iterates"), steps=2)
    assert relative(run(engine), expected) < 1e-6
    assert "by differences" in engine.adjoint.choices()["up <- fit"]
    with pytest.raises(GraphError, match="whose double backward is missing or wrong"):
        run(program(missing(), Forward(50, kept=0.0)))


@pytest.mark.parametrize("name", ["t1t2", "cg", "unrolled"])
def test_a_cut_and_a_detach_together_are_told_apart(name: str, caplog: pytest.LogCaptureFixture) -> None:
    module = cut()
    quotients = Quotients(module, stop=True)
    estimate: Hypergradient
    if name == "unrolled":
        expected, estimate = quotients.unrolled(3), Unrolled(None, "iterates")
    else:
        solve, cross, definition = IMPLICIT[name]
        expected, estimate = quotients.implicit(definition), Implicit(solve, cross, "after", "full")
    engine = program(module, estimate, fit=Stopped, steps=3 if name == "unrolled" else 1)
    with caplog.at_level(logging.WARNING, "mlorun"):
        assert relative(run(engine), expected) < 1e-6
    assert caplog.records
    assert "themselves" not in caplog.text


class Weighted(Fit):
    def training_step(self, batch: Any) -> Tensor:
        x, y = rows(1)
        return (self.up.module.row.sigmoid() * (self(x) - y).square()[:, 0]).mean()


def test_a_difference_of_the_loss_that_is_right_is_not_called_wrong(caplog: pytest.LogCaptureFixture) -> None:
    module, gradients = cut(), []
    for cross in (CentralDifference(1e-4, relative=False), FORWARD):
        lower = Weighted(
            name="fit",
            module=copy.deepcopy(module),
            optimizer=lambda theta: torch.optim.SGD(theta, lr=RATE),
            hypergradient=Implicit(Identity(1.0), cross, "after", "full"),
        )
        upper = Up(name="up", module=Numbers(*[0.0] * 12), optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0))
        with caplog.at_level(logging.WARNING, "mlorun"):
            gradients.append(run(Engine([upper, lower], {"u2l": {"up": ["fit"]}}, train_iters=1, seed=0)))
        if cross is not FORWARD:
            assert not caplog.records
    assert relative(*gradients) < 1e-6


class Half(torch.autograd.Function):
    """The identity with half the gradient that it should have."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1.0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad / 2


class HalfInHyperparameters(Fit):
    def training_step(self, batch: Any) -> Tensor:
        return lower_loss(self, Half.apply(self.up.module.row))


@pytest.mark.parametrize("name", ["t1t2", "unrolled"])
def test_where_nothing_agrees_the_size_of_the_error_is_named(name: str, caplog: pytest.LogCaptureFixture) -> None:
    estimate: Hypergradient = (
        Unrolled(None, "iterates") if name == "unrolled" else Implicit(Identity(1.0), DOUBLE, "after", "full")
    )
    with caplog.at_level(logging.WARNING, "mlorun"):
        run(program(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), estimate, fit=HalfInHyperparameters))
    words = "which are 50 % off themselves" if name == "unrolled" else "held is 50 % off the change of the gradient"
    assert words in caplog.text


@pytest.mark.parametrize("name", ["unrolled", "t1t2", "cg"])
def test_a_decision_for_differences_goes_through_a_checkpoint_and_holds_at_later_calls(name: str) -> None:
    def estimate() -> Hypergradient:
        if name == "unrolled":
            return Unrolled(None, "iterates")
        solve, cross, _ = IMPLICIT[name]
        return Implicit(solve, cross, "after", "full")

    module = cut()
    engine = program(module, estimate(), steps=2)
    run(engine)
    fresh = engine.gradient("up")[0]
    other = program(cut(), estimate(), steps=2)
    other.load_state_dict(engine.state_dict())
    assert other.adjoint.choices() == engine.adjoint.choices()
    assert "difference" in other.adjoint.choices()["up <- fit"].lower()
    assert ("in place of" in other.adjoint.choices()["up <- fit"]) == (name != "unrolled")
    assert torch.equal(other.gradient("up")[0], fresh)
    engine.adjoint.carries["up"].clear()
    assert relative(fresh, engine.gradient("up")[0]) < 1e-12  # as decided anew


class Blocks(nn.Module):
    """Outputs of a linear layer, and a block that they do not depend on, under a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.apart = nn.Linear(3, 1), nn.Linear(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Apart(Fit):
    def training_step(self, batch: Any) -> Tensor:
        return super().training_step(batch) + Cut.apply(self.module.apart.weight * self.up.module.row[0]).sum()


@pytest.mark.parametrize("preset", ["unrolled", "cg"])
def test_a_cut_in_a_block_that_the_upper_problem_does_not_pull_on_is_seen(
    preset: str, caplog: pytest.LogCaptureFixture
) -> None:
    estimate = Unrolled(None, "iterates") if preset == "unrolled" else Implicit(*IMPLICIT["cg"][:2], "after", "full")
    with caplog.at_level(logging.WARNING, "mlorun"):
        run(program(Blocks(), estimate, fit=Apart))
    assert "% off the change of the gradient" in caplog.text


def given(loss: Callable[[Tensor], Tensor], theta: Tensor) -> tuple[Level, Vector]:
    """The level of a loss of theta alone, and a vector."""
    parameter = nn.Parameter(theta)
    rule = UpdateRule((parameter,), torch.optim.SGD([parameter], lr=0.1), None, None)
    problem = GivenProblem("fit", (parameter.detach(),), rule, lambda values: loss(values["fit"][0]))
    return Level(problem), (torch.linspace(-1, 1, len(theta)),)


def test_a_gradient_too_large_for_its_change_to_be_seen_proves_nothing() -> None:
    level, v = given(lambda theta: 1e14 * theta.sum() + theta.square().sum(), torch.linspace(0.1, 1, 5))
    assert Reference(level, v).hessian_error() == 0


class Rough(torch.autograd.Function):
    """The square, with a gradient that is off by a hundredth, up or down, from one number to the next."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * (2 * x + 0.01 * (1e12 * x.detach()).sin())


def test_differences_that_differ_among_themselves_prove_nothing() -> None:
    level, v = given(lambda theta: Rough.apply(theta).sum(), torch.linspace(0.1, 1, 5))
    torch.testing.assert_close(level.hvp(v)[0], 2 * v[0])
    assert Reference(level, v).hessian_error() == 0


def test_a_kink_at_the_very_point_proves_nothing() -> None:
    level, v = given(lambda theta: F.relu(theta).square().sum() + theta.sum(), torch.tensor([0.0, 0.0, 1.0, 2.0, -1.0]))
    assert Reference(level, v).hessian_error() == 0


def test_a_wrong_product_is_told_by_its_size() -> None:
    level, v = given(lambda theta: Cut.apply(theta).sum() + theta.square().sum(), torch.zeros(5))
    assert Reference(level, v).hessian_error() == pytest.approx(0.25 / 2.25, rel=1e-3)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x[:, None].expand(-1, 3, -1))[0][:, -1])


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6, padding_idx=0), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.table((2 * x).long().abs().clamp(max=8)).mean(dim=1)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x[:, None].expand(-1, 3, -1) * torch.tensor([[1.0], [0.5], [2.0]])).mean(dim=1))


class Teacher(nn.Module):
    """Learns from its own outputs, taken as constants."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), Kernel(Twice.apply), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            goal = self.body(x).mul_(0.5).tanh()
        out: Tensor = self.body(x)
        return out * out.square().mean().item() - (out - goal).square()


class Constants(nn.Module):
    """Makes tensors without saying of which type, and draws into them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(torch.relu(x @ torch.eye(4) + torch.randn(4))) @ torch.ones(3, 3).triu()


class InSingle(nn.Module):
    """Whatever comes in, it computes in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.linear(x.float(), self.body.weight.float(), self.body.bias.float()))


def sequence(*middle: nn.Module, width: int = 16) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), *middle, nn.Linear(width, 3))


ORDINARY: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: sequence(nn.ReLU(), nn.Linear(16, 16), nn.ReLU()),
    "wide relu": lambda: sequence(nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), width=400),
    "gelu and layer norm": lambda: sequence(nn.GELU(), nn.LayerNorm(16)),
    "dropout": lambda: sequence(nn.Dropout(0.5), nn.ReLU()),
    "batch norm": lambda: sequence(nn.BatchNorm1d(16), nn.ReLU()),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)),
        nn.Conv2d(1, 6, 2, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 3),
    ),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 3)
    ),
    "lstm": Recurrent,
    "embedding": Words,
    "attention": Attention,
    "teacher": Teacher,
    "constants": Constants,
    "single": InSingle,
    "linear": lambda: nn.Linear(4, 3),
}


class Classify(Problem):
    """Meta-Weight-Net: the weights read detached losses."""

    scale = 1.0

    def get_batch(self) -> Any:
        draw = torch.Generator().manual_seed(1)
        return torch.randn(24, 4, generator=draw), torch.randint(3, (24,), generator=draw)

    def training_step(self, batch: Any) -> Tensor:
        losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")[:, None]
        weights = self.up.module(losses.detach())
        return ((1 - self.scale + self.scale * weights) * losses).mean()


class Faint(Classify):
    scale = 1e-7


class Unread(Classify):
    scale = 0.0


class Judge(Problem):
    def get_batch(self) -> Any:
        draw = torch.Generator().manual_seed(2)
        return torch.randn(24, 4, generator=draw), torch.randint(3, (24,), generator=draw)

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.fit(batch[0]), batch[1])


def ordinary(module: nn.Module, estimate: Hypergradient, fit: type[Problem] = Classify, **more: Any) -> Engine:
    lower = fit(
        name="fit",
        module=module,
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1, momentum=0.9),
        hypergradient=estimate,
        update_schedule=UpdateSchedule(unroll_steps=2),
    )
    weights = nn.Sequential(nn.Linear(1, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())
    upper = Judge(name="up", module=weights, optimizer=lambda theta: torch.optim.Adam(theta, lr=1e-3))
    return Engine([upper, lower], {"u2l": {"up": ["fit"]}}, train_iters=4, seed=0, **more)


def alarms(engine: Engine, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of products that are off."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "mlorun"):
        engine.run()
    return [record.getMessage() for record in caplog.records if "% off" in record.getMessage()]


CHECKED: dict[str, Callable[[], Hypergradient]] = {
    "cg": lambda: Implicit(ConjugateGradient(3, 1.0, 0.0, False), DoubleBackward(), "after", "full"),
    "t1t2": lambda: Implicit(Identity(1.0), ForwardOverReverse(), "after", "full"),
    "unrolled": lambda: Unrolled(None, "iterates"),
}


@pytest.mark.parametrize("own_precision", [False, True], ids=["in float64", "in float32"])
@pytest.mark.parametrize("preset", CHECKED)
@pytest.mark.parametrize("net", ORDINARY)
def test_there_is_no_alarm_for(
    net: str, preset: str, own_precision: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_precision:
        monkeypatch.setattr(ProblemView, "in_double", lambda view: None)
    with default_dtype(torch.float32):
        assert alarms(ordinary(ORDINARY[net](), CHECKED[preset]()), caplog) == []


@pytest.mark.parametrize("preset", CHECKED)
@pytest.mark.parametrize("fit", [Faint, Unread])
def test_there_is_no_alarm_where_hyperparameters_hardly_act(
    fit: type[Problem], preset: str, caplog: pytest.LogCaptureFixture
) -> None:
    with default_dtype(torch.float32):
        assert alarms(ordinary(ORDINARY["relu"](), CHECKED[preset](), fit), caplog) == []


@pytest.mark.parametrize("preset", CHECKED)
@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_there_is_no_alarm_under_autocast(preset: str, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with default_dtype(torch.float32):
        engine = ordinary(ORDINARY["relu"](), CHECKED[preset](), device=CPU, precision=Precision(kind, CPU))
        assert alarms(engine, caplog) == []


@pytest.mark.parametrize(
    ("net", "own_precision"),
    [
        ("relu", False),
        ("dropout", False),
        ("lstm", False),
        ("batch norm", False),
        ("batch norm", True),
        ("attention", True),
    ],
)
def test_a_kernel_that_cuts_is_seen_in_a_float32_program_before(
    net: str, own_precision: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    if own_precision:
        monkeypatch.setattr(ProblemView, "in_double", lambda view: None)
    with default_dtype(torch.float32):
        module = nn.Sequential(nn.Linear(4, 4), Kernel(Cut.apply), ORDINARY[net]())
        (alarm,) = alarms(ordinary(module, CHECKED["unrolled"]()), caplog)
    assert alarm.endswith("second derivatives by differences of gradients")


def test_the_check_leaves_random_numbers_and_every_parameter_as_they_are() -> None:
    """Two programs that differ in the number of checks give the same bits."""
    results = []
    for checks in (1, 3):
        torch.manual_seed(0)
        engine = ordinary(ORDINARY["dropout"](), CHECKED["t1t2"]())
        for _ in engine.steps():
            for _ in range(checks - 1):
                engine.adjoint.carries["up"].clear()
                engine.gradient("up")
        results.append([*engine.problems["fit"].theta, *engine.problems["up"].theta, torch.get_rng_state()])
    assert all(map(torch.equal, *results))
