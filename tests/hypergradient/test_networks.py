"""Hypergradients of small networks: dropout, BatchNorm, stop-gradients, weight decay, frozen parameters, accumulation.

The reference shares no code with mlorun: it evaluates the lower loss by torch.func.functional_call on copies, under the
random state of the step, and builds the dense Hessian and cross block by double backward.
"""

from __future__ import annotations

import copy
import logging
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import Action, UpdateSchedule
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.neumann import Neumann
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.run.device import Precision
from tests.hypergradient.stepping import execute

ROWS, INPUTS, HIDDEN = 8, 3, 4
CPU = torch.device("cpu")


def network(kind: str) -> nn.Sequential:
    middle: dict[str, Callable[[], nn.Module]] = {
        "plain": nn.Identity,
        "dropout": lambda: nn.Dropout(0.5),
        "batch norm": lambda: nn.BatchNorm1d(HIDDEN),
    }
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), middle[kind](), nn.Tanh(), nn.Linear(HIDDEN, 1))


class WeightNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1), nn.Sigmoid())

    def forward(self, losses: Tensor) -> Tensor:
        return self.net(losses)


def lower_loss(model: Callable[[Tensor], Tensor], weight: Callable[[Tensor], Tensor], batch: Any, stop: str) -> Tensor:
    x, y, s = batch
    losses = (model(x) - y).square()
    if stop == "detach":
        return (weight(losses.detach()) * losses).mean()
    if stop == "no_grad":
        with torch.no_grad():
            constant = (model(x) - y).square()
        return (weight(constant) * losses).mean()
    return (weight(s) * losses).mean()


class Lower(Problem):
    def __init__(self, *, stop: str, batches: list[Any], **problem: Any) -> None:
        super().__init__(**problem)
        self.stop, self.batches = stop, iter(batches)

    def get_batch(self) -> Any:
        return next(self.batches)

    def training_step(self, batch: Any) -> Tensor:
        return lower_loss(self, self.upper, batch, self.stop)


class Upper(Problem):
    def __init__(self, *, batches: list[Any], **problem: Any) -> None:
        super().__init__(**problem)
        self.batches = iter(batches)
        self.seen: list[list[Tensor]] = []

    def get_batch(self) -> Any:
        return next(self.batches)

    def training_step(self, batch: Any) -> Tensor:
        x, y, _ = batch
        # eval mode for the upper pass keeps the reference simple; the lower steps are what is replayed
        return (self.lower(x) - y).square().mean() + 0.1 * sum(p.square().sum() for p in self.module.parameters())

    def grad_callback(self) -> None:
        self.seen.append([p.grad.clone() for p in self.theta if p.grad is not None])


def batch(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, n, generator=draw) for n in (INPUTS, 1, 1))  # type: ignore[return-value]


class Program:
    """A lower network and an upper weight net, one lower optimizer step of length 0, then one upper gradient."""

    def __init__(
        self,
        kind: str,
        solve: Solver,
        cross: Cross,
        *,
        stop: str = "",
        decay: float = 0.0,
        freeze: bool = False,
        parts: int = 1,
    ) -> None:
        self.kind, self.stop, self.decay = kind, stop, decay
        self.data = batch(1)
        micro = [tuple(t.chunk(parts)[i] for t in self.data) for i in range(parts)]
        self.held_out = batch(2)
        model, weight = network(kind), WeightNet()
        if freeze:
            model[0].bias.requires_grad_(False)
            weight.net[0].bias.requires_grad_(False)
        self.lower = Lower(
            name="lower",
            module=model,
            stop=stop,
            batches=micro * 3,
            update_schedule=UpdateSchedule(gradient_accumulation=parts),
            optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0, weight_decay=decay),
            hypergradient=Implicit(solve, cross, "after", "full"),
        )
        self.upper = Upper(
            name="upper",
            module=weight,
            batches=[self.held_out] * 3,
            optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0),
        )
        graph = ProblemGraph.build(["upper", "lower"], {"upper": ["lower"]})
        self.engine = Engine(
            [self.upper, self.lower], graph, device=CPU, precision=Precision("fp32", CPU), train_iters=1
        )
        self.parts = parts

    def gradient(self) -> Tensor:
        torch.manual_seed(7)
        execute(self.engine, *(Action("lower", updates=part == self.parts - 1) for part in range(self.parts)))
        self.lower.module.eval()
        execute(self.engine, Action("upper"))
        return torch.cat([g.flatten() for g in self.upper.seen[-1]])

    def reference(self, solve: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """direct - B solve(H, v), dense, on copies. Call before `gradient`."""
        model, weight = copy.deepcopy(self.lower.module).train(), copy.deepcopy(self.upper.module)
        theta_names = [n for n, p in model.named_parameters() if p.requires_grad]
        lam_names = [n for n, p in weight.named_parameters() if p.requires_grad]
        theta = [dict(model.named_parameters())[n].detach().clone().requires_grad_() for n in theta_names]
        lam = [dict(weight.named_parameters())[n].detach().clone().requires_grad_() for n in lam_names]
        buffers = {n: b.clone() for n, b in model.named_buffers()}

        def run_model(x: Tensor) -> Tensor:
            return functional_call(model, {**dict(zip(theta_names, theta, strict=True)), **buffers}, (x,))

        def run_weight(x: Tensor) -> Tensor:
            return functional_call(weight, dict(zip(lam_names, lam, strict=True)), (x,))

        torch.manual_seed(7)
        loss = lower_loss(run_model, run_weight, self.data, self.stop)
        loss = loss + self.decay / 2 * sum(t.square().sum() for t in theta)
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta, create_graph=True)])
        rows = [torch.autograd.grad(g, [*theta, *lam], retain_graph=True, allow_unused=True) for g in gradient]
        flat = torch.stack(
            [
                torch.cat(
                    [
                        (torch.zeros_like(p) if r is None else r).flatten()
                        for r, p in zip(row, [*theta, *lam], strict=True)
                    ]
                )
                for row in rows
            ]
        )
        p = len(gradient)
        h, b = flat[:, :p], flat[:, p:].T
        model.eval()
        x, y, _ = self.held_out
        # BatchNorm's statistics have moved once, in the lower step
        after = {n: t.clone() for n, t in model.named_buffers()}
        if self.kind == "batch norm":
            once = copy.deepcopy(self.lower.module).train()
            once(self.data[0])
            after = {n: t.clone() for n, t in once.named_buffers()}
        outputs = functional_call(model, {**dict(zip(theta_names, theta, strict=True)), **after}, (x,))
        frozen = sum(q.detach().square().sum() for q in weight.parameters() if not q.requires_grad)
        upper = (outputs - y).square().mean() + 0.1 * (sum(q.square().sum() for q in lam) + frozen)
        grads = torch.autograd.grad(upper, [*theta, *lam])
        v = torch.cat([g.flatten() for g in grads[: len(theta)]])
        direct = torch.cat([g.flatten() for g in grads[len(theta) :]])
        return direct - b @ solve(h, v)


def identity(h: Tensor, v: Tensor) -> Tensor:
    return v


A, TERMS = 0.05, 6


def truncated(h: Tensor, v: Tensor) -> Tensor:
    eye = torch.eye(len(h))
    return sum(A * torch.linalg.matrix_power(eye - A * h, k) @ v for k in range(TERMS + 1))  # type: ignore[return-value]


SOLVES: dict[str, tuple[Callable[[], Solver], Callable[[Tensor, Tensor], Tensor], float]] = {
    "t1t2": (lambda: Identity(1.0), identity, 1e-12),
    "neumann": (lambda: Neumann(TERMS, A), truncated, 1e-10),
    # the decay makes H positive definite, and has to be in H for this to pass
    "cg": (lambda: ConjugateGradient(60, damping=0.0, tolerance=1e-15, warm_start=False), torch.linalg.solve, 1e-8),
}
CONDITIONS: dict[str, dict[str, Any]] = {
    "plain": {"kind": "plain"},
    "dropout": {"kind": "dropout"},
    "batch norm": {"kind": "batch norm"},
    "a detach": {"kind": "plain", "stop": "detach"},
    "dropout and a detach": {"kind": "dropout", "stop": "detach"},
    "no_grad": {"kind": "plain", "stop": "no_grad"},
    "frozen parameters": {"kind": "plain", "freeze": True},
}


def relative(got: Tensor, reference: Tensor) -> float:
    return ((got - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("cross", [ForwardOverReverse(), DoubleBackward()], ids=["forward", "double"])
@pytest.mark.parametrize("preset", SOLVES)
def test_a_preset_is_right_on_a_network_with(condition: str, cross: Cross, preset: str) -> None:
    make, solve, bound = SOLVES[preset]
    program = Program(solve=make(), cross=cross, decay=4.0, **CONDITIONS[condition])
    reference = program.reference(solve)
    assert relative(program.gradient(), reference) < bound
    assert program.engine.adjoint.choices() == {"upper <- lower": f"{type(make()).__name__} x {type(cross).__name__}"}


@pytest.mark.parametrize("condition", ["plain", "dropout", "batch norm", "frozen parameters"])
def test_darts_is_right_where_nothing_is_detached(condition: str) -> None:
    cross = CentralDifference(1e-3, relative=False)
    program = Program(solve=Identity(1.0), cross=cross, decay=4.0, **CONDITIONS[condition])
    reference = program.reference(identity)
    assert relative(program.gradient(), reference) < 1e-5


def test_darts_is_off_through_a_detach_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    program = Program("plain", Identity(1.0), CentralDifference(1e-3, relative=False), stop="detach")
    reference = program.reference(identity)
    with caplog.at_level(logging.WARNING, "mlorun"):
        error = relative(program.gradient(), reference)
    assert error > 1e-3
    assert "sees through stop-gradients" in caplog.text


def test_no_warning_is_given_where_every_cross_agrees(caplog: pytest.LogCaptureFixture) -> None:
    for cross in (ForwardOverReverse(), DoubleBackward(), CentralDifference(1e-3, relative=False)):
        with caplog.at_level(logging.WARNING, "mlorun"):
            Program("plain", Identity(1.0), cross).gradient()
    assert not caplog.records


@pytest.mark.parametrize("preset", SOLVES)
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_micro_batches_equal_one_batch(preset: str, parts: int) -> None:
    make, solve, _ = SOLVES[preset]
    program = Program("plain", make(), ForwardOverReverse(), stop="detach", decay=4.0, parts=parts)
    reference = program.reference(solve)
    assert relative(program.gradient(), reference) < 1e-8


def level_of_lower(engine: Engine) -> Level:
    return Level(engine.recorder.views.view("lower", ("upper",)))


def everything(program: Program) -> list[Any]:
    """Bits of all that a hypergradient must leave alone."""
    modules = [program.lower.module, program.upper.module]
    tensors = [t.clone() for m in modules for t in (*m.parameters(), *m.buffers())]
    states = [copy.deepcopy(p.optimizer.state_dict()) for p in (program.lower, program.upper)]
    modes = [m.training for module in modules for m in module.modules()]
    grads = [None if p.grad is None else p.grad.clone() for m in modules for p in m.parameters()]
    numpy_state = np.random.get_state()
    return [tensors, torch.get_rng_state(), random.getstate(), str(numpy_state), str(states), modes, grads]


def same(before: list[Any], after: list[Any]) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, list):
        return len(before) == len(after) and all(map(same, before, after))
    return bool(before == after)


CROSSES = [ForwardOverReverse(), DoubleBackward(), CentralDifference(1e-3, relative=False)]


@pytest.mark.parametrize("kind", ["dropout", "batch norm"])
@pytest.mark.parametrize("cross", CROSSES, ids=["forward", "double", "central"])
@pytest.mark.parametrize("preset", SOLVES)
def test_a_hypergradient_leaves_every_bit_as_it_was_and_twice_is_the_same(kind: str, cross: Cross, preset: str) -> None:
    program = Program(kind, SOLVES[preset][0](), cross, decay=4.0)
    program.gradient()
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(11)  # elsewhere than any step was
    before = everything(program)
    results = []
    for _ in range(2):
        x, y, _ = program.held_out
        loss = (program.lower.module(x) - y).square().mean()
        results.append(program.engine.adjoint.gradient("upper", loss).vector)
    assert same(before, everything(program))
    assert all(map(torch.equal, *results))


def test_batch_norm_statistics_move_once_a_step_however_often_it_is_replayed() -> None:
    program = Program("batch norm", ConjugateGradient(5, 0.0, 0.0, False), CentralDifference(1e-3, relative=False))
    program.gradient()
    assert int(program.lower.module[1].num_batches_tracked) == 1


def test_a_pull_of_zero_gives_a_hypergradient_of_zero() -> None:
    for cross in CROSSES:
        program = Program("plain", Identity(1.0), cross)
        program.gradient()
        level = level_of_lower(program.engine)
        zero = tuple(torch.zeros_like(t) for t in level.theta)
        assert all((part == 0).all() for part in cross(level, zero)["upper"])


def test_a_relative_radius_is_in_units_of_the_parameters() -> None:
    program = Program("plain", Identity(1.0), DoubleBackward())
    program.gradient()
    level = level_of_lower(program.engine)
    x = tuple(torch.randn_like(t) for t in level.theta)
    length = float(torch.cat([t.flatten() for t in level.theta]).norm())
    crosses = [CentralDifference(0.3, relative=True), CentralDifference(0.3 * length, relative=False)]
    one, other = (torch.cat([t.flatten() for t in cross(level, x)["upper"]]) for cross in crosses)
    assert abs(length - 1) > 0.1
    assert relative(one, other) < 1e-12


def test_a_hessian_product_is_the_hessian_times_the_vector() -> None:
    program = Program("dropout", Identity(1.0), ForwardOverReverse(), decay=2.0)
    program.gradient()
    level = level_of_lower(program.engine)
    x = tuple(torch.randn_like(t) for t in level.theta)
    sizes = [t.numel() for t in level.theta]

    def loss(row: Tensor) -> Tensor:
        parts = [p.view_as(t) for p, t in zip(row.split(sizes), level.theta, strict=True)]
        return level.loss(tuple(parts)) + 1.0 * row.square().sum()

    h = torch.autograd.functional.hessian(loss, torch.cat([t.flatten() for t in level.theta]))
    got = torch.cat([t.flatten() for t in level.hvp(x)])
    assert relative(got, h @ torch.cat([t.flatten() for t in x])) < 1e-12


class NoForward(torch.autograd.Function):
    """A kernel with a backward pass that can be differentiated, and no forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.saved_tensors[0].exp()


class NoDouble(torch.autograd.Function):
    """A kernel with a backward pass that cannot be differentiated, as fused attention has."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad * ctx.saved_tensors[0].exp()


class Through(nn.Module):
    def __init__(self, kernel: Any) -> None:
        super().__init__()
        self.linear, self.kernel = nn.Linear(INPUTS, 1), kernel

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(0.1 * self.linear(x))


@pytest.mark.parametrize(
    ("kernel", "solve", "words", "chosen", "bound"),
    [
        (NoForward, Identity(1.0), "using double backward", "DoubleBackward, in place of ForwardOverReverse", 1e-12),
        (NoDouble, Identity(1.0), "using central difference", "CentralDifference, in place of", 1e-4),
        (NoDouble, ConjugateGradient(5, 1.0, 0.0, False), "products by differences", "by differences of", 1e-4),
    ],
)
def test_a_kernel_without_the_derivative_gets_a_stand_in_and_a_line_in_the_log(
    kernel: Any, solve: Solver, words: str, chosen: str, bound: float, caplog: pytest.LogCaptureFixture
) -> None:
    program = Program("plain", solve, ForwardOverReverse())
    plain = Program("plain", solve, ForwardOverReverse())
    module, twin = Through(kernel.apply), Through(torch.exp)
    twin.load_state_dict(module.state_dict())
    plain.upper.module.load_state_dict(program.upper.module.state_dict())
    for each, body in ((program, module), (plain, twin)):
        lower = Lower(
            name="lower",
            module=body,
            stop="",
            batches=[each.data] * 3,
            hypergradient=each.lower.hypergradient,
            optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0),
        )
        each.lower = lower
        each.engine = Engine(
            [each.upper, lower], each.engine.graph, device=CPU, precision=Precision("fp32", CPU), train_iters=1
        )
    with caplog.at_level(logging.WARNING, "mlorun"):
        got = program.gradient()
    assert words in caplog.text
    assert chosen in program.engine.adjoint.choices()["upper <- lower"]
    assert relative(got, plain.gradient()) < bound


def test_an_lstm_which_has_no_forward_mode_is_differentiated_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.head = nn.LSTM(INPUTS, 4, batch_first=True), nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x[:, None])[0][:, -1])

    results = []
    torch.manual_seed(3)
    body = Recurrent()
    for cross in (ForwardOverReverse(), DoubleBackward(), CentralDifference(1e-4, relative=False)):
        torch.manual_seed(4)
        program = Program("plain", Identity(1.0), cross)
        lower = Lower(
            name="lower",
            module=copy.deepcopy(body),
            stop="",
            batches=[program.data] * 3,
            hypergradient=program.lower.hypergradient,
            optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0),
        )
        program.lower = lower
        program.engine = Engine(
            [program.upper, lower], program.engine.graph, device=CPU, precision=Precision("fp32", CPU), train_iters=1
        )
        results.append(program.gradient())
    assert relative(results[0], results[1]) < 1e-6
    assert relative(results[2], results[1]) < 1e-5


def test_tied_parameters_are_one_parameter_wherever_they_stand() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x))).sum(dim=1, keepdim=True)

    program = Program("plain", Identity(1.0), DoubleBackward())
    lower = Lower(
        name="lower",
        module=Tied(),
        stop="",
        batches=[program.data] * 3,
        hypergradient=program.lower.hypergradient,
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0),
    )
    engine = Engine(
        [program.upper, lower], program.engine.graph, device=CPU, precision=Precision("fp32", CPU), train_iters=1
    )
    execute(engine, Action("lower"))
    level = level_of_lower(engine)
    x = tuple(torch.randn_like(t) for t in level.theta)
    assert len(level.theta) == 1
    crosses = [torch.cat([t.flatten() for t in cross(level, x)["upper"]]) for cross in CROSSES]
    assert relative(crosses[0], crosses[1]) < 1e-12
    assert relative(crosses[2], crosses[1]) < 1e-5


def test_cross_entropy_of_a_detached_loss_is_exact_in_float32() -> None:
    torch.set_default_dtype(torch.float32)

    class Classify(Problem):
        def get_batch(self) -> Any:
            return batch(1)[0], torch.arange(ROWS) % 2

        def training_step(self, data: Any) -> Tensor:
            losses = F.cross_entropy(self(data[0]), data[1], reduction="none")[:, None]
            return (self.upper(losses.detach()) * losses).mean()

    results = []
    for cross in (ForwardOverReverse(), DoubleBackward()):
        torch.manual_seed(5)
        program = Program("plain", Identity(1.0), cross)
        lower = Classify(
            name="lower",
            module=nn.Linear(INPUTS, 2),
            optimizer=lambda theta: torch.optim.SGD(theta, lr=0.0),
            hypergradient=program.lower.hypergradient,
        )
        engine = Engine(
            [program.upper, lower], program.engine.graph, device=CPU, precision=Precision("fp32", CPU), train_iters=1
        )
        execute(engine, Action("lower"))
        level = level_of_lower(engine)
        torch.manual_seed(6)
        x = tuple(torch.randn_like(t) for t in level.theta)
        results.append(torch.cat([t.flatten() for t in cross(level, x)["upper"]]))
    assert relative(*results) < 1e-5
