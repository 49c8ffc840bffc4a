"""Unrolled reverse mode and forward mode against a hand-written unroll, difference quotients and closed forms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, AdamW, Optimizer, RMSprop

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.pure_steps import PURE_STEPS
from mlorun.core.program.schedule import Action, UpdateSchedule
from mlorun.data.stream import stream
from mlorun.errors import ConfigError, GraphError
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.inner_loop import Iterate
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.run.device import Precision
from mlorun.verify.oracles import CASES, maml
from mlorun.verify.suite import hypergradient, relative, series
from tests.hypergradient.stepping import execute

CPU = torch.device("cpu")
T, ROWS, INPUTS = 4, 6, 3


class Hyper(nn.Module):
    """Everything that an upper problem may decide."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(INPUTS))
        self.options = nn.ParameterDict()
        self.start = nn.ParameterList()


class Lower(Problem):
    """Regression with a penalty that the upper problem weighs."""

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        penalty = (self.upper.module.weights.exp() * self.module[0].weight.square()).sum()
        return (self(x).squeeze(1) - y).square().mean() + 0.1 * penalty

    def initial_parameters(self) -> Iterable[Tensor] | None:
        start = list(self.upper.module.start)
        return [2 * t for t in start] if start else None

    def optimizer_options(self) -> Mapping[str, Tensor]:
        return {key: value.exp() for key, value in self.upper.module.options.items()}


class Upper(Problem):
    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        return (self.lower(x).squeeze(1) - y).square().mean()


def network(dropout: bool = False) -> nn.Sequential:
    layers = [nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, 1)]
    if dropout:
        layers[1:1] = [nn.BatchNorm1d(4), nn.Dropout(0.3)]
    return nn.Sequential(*layers)


class Program:
    """One inner loop of `steps` updates; then the upper problem's gradient."""

    def __init__(
        self,
        estimate: Hypergradient,
        optimizer: Callable[[Any], Optimizer],
        *,
        learned: Mapping[str, float | list[float]] | None = None,
        start: bool = False,
        dropout: bool = False,
        accumulation: int = 1,
        clip: float | None = None,
        scheduler: Any = None,
        steps: int = T,
    ) -> None:
        torch.manual_seed(1)
        data = {name: (torch.randn(4 * ROWS, INPUTS), torch.randn(4 * ROWS)) for name in ("upper", "lower")}

        def batches(name: str) -> Any:
            return stream(data[name], batch_size=ROWS, seed=0, name=name, device=CPU)

        hyper, body = Hyper(), network(dropout)
        for key, value in (learned or {}).items():
            hyper.options[key] = nn.Parameter(torch.tensor(value).log())
        if start:
            hyper.start.extend([nn.Parameter(torch.randn_like(p) / 4) for p in body.parameters()])
        self.upper = Upper(name="upper", module=hyper, optimizer=lambda p: SGD(p, lr=0.1), stream=batches("upper"))
        self.lower = Lower(
            name="lower",
            module=body,
            optimizer=optimizer,
            scheduler=scheduler,
            stream=batches("lower"),
            hypergradient=estimate,
            gradient_clip=clip,
            update_schedule=UpdateSchedule(unroll_steps=steps, gradient_accumulation=accumulation),
        )
        graph = ProblemGraph.build(["upper", "lower"], {"upper": ["lower"]})
        self.engine = Engine(
            [self.upper, self.lower],
            graph,
            device=CPU,
            precision=Precision("fp32", CPU),
            train_iters=steps * accumulation,
        )
        self.accumulation = accumulation

    def gradient(self) -> Tensor:
        """Of every parameter of the upper problem, in one row."""
        got: list[Tensor] = []
        self.upper.grad_callback = lambda: got.append(  # type: ignore[method-assign]
            torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in self.upper.theta])
        )
        self.engine.run()
        return got[0]

    def inner_loop(self) -> list[Action]:
        """What the plan lets the lower problem do before the upper one steps."""
        return [action for step in range(T) for action in self.engine.plan.at(step) if action.problem == "lower"]

    def quotient(self, h: float = 1e-5) -> Tensor:
        """The difference quotient of F over whole reruns of torch's own optimizer: no code of the estimators."""
        rows = []
        for parameter in self.upper.theta:
            for index in range(parameter.numel()):
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        parameter.view(-1)[index] += sign * h
                    values.append(self.rerun())
                    with torch.no_grad():
                        parameter.view(-1)[index] -= sign * h
                rows.append((values[0] - values[1]) / (2 * h))
        return torch.tensor(rows)

    def rerun(self) -> float:
        """F after the inner loop, from the state that a fresh program starts in."""
        fresh = self.fresh()
        seen: list[float] = []
        loss = fresh.upper.training_step

        def watched(batch: Any) -> Tensor:
            value = loss(batch)
            seen.append(float(value.detach()))
            return value

        fresh.engine.probe()
        fresh.upper.training_step = watched  # type: ignore[method-assign]
        torch.manual_seed(7)
        for _ in fresh.engine.steps():
            pass
        return seen[0]

    def fresh(self) -> Program:
        """The same program before its first step, with this one's upper parameters; nobody unrolls anything."""
        raise NotImplementedError


def program_of(**kwargs: Any) -> Callable[[Hypergradient], Program]:
    """Programs alike in everything but the estimator."""

    def make(estimate: Hypergradient) -> Program:
        program = Program(estimate, **kwargs)

        def fresh() -> Program:
            from mlorun.hypergradient.estimators.first_order import FirstOrder

            other = Program(FirstOrder(), **kwargs)
            other.upper.module.load_state_dict(program.upper.module.state_dict())
            return other

        program.fresh = fresh  # type: ignore[method-assign]
        return program

    return make


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "nesterov": lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "dampened": lambda p: SGD(p, lr=0.1, momentum=0.5, dampening=0.3),
    "adam": lambda p: Adam(p, lr=0.05),
    "adam with decay": lambda p: Adam(p, lr=0.05, weight_decay=0.1),
    "amsgrad": lambda p: Adam(p, lr=0.05, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=0.05, weight_decay=0.1),
    "rmsprop": lambda p: RMSprop(p, lr=0.02),
    "centred rmsprop with momentum": lambda p: RMSprop(p, lr=0.02, centered=True, momentum=0.5, eps=1e-2),
    "adagrad": lambda p: Adagrad(p, lr=0.1),
}


def in_two(kind: Any, **options: Any) -> Callable[[Any], Optimizer]:
    """The optimizer with a parameter group for each layer."""
    return lambda p: kind([{"params": [*p][:2]}, {"params": [*p][2:]}], **options)


VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": make} for name, make in OPTIMIZERS.items()},
    "learned lr": {"optimizer": OPTIMIZERS["sgd"], "learned": {"lr": 0.1}},
    "learned lr, momentum and decay": {
        "optimizer": OPTIMIZERS["momentum"],
        "learned": {"lr": 0.05, "momentum": 0.8, "weight_decay": 0.1},
    },
    "learned lr and decay of adamw": {
        "optimizer": OPTIMIZERS["adamw"],
        "learned": {"lr": 0.05, "weight_decay": 0.1},
    },
    "learned lr of each group": {"optimizer": in_two(SGD, lr=0.1), "learned": {"lr": [0.1, 0.02]}},
    "learned lr, momentum of each group, and decay of all": {
        "optimizer": in_two(SGD, lr=0.05, momentum=0.9, nesterov=True),
        "learned": {"lr": [0.05, 0.1], "momentum": [0.8, 0.5], "weight_decay": 0.1},
    },
    "learned lr of each group of adam": {
        "optimizer": in_two(Adam, lr=0.05),
        "learned": {"lr": [0.05, 0.01], "weight_decay": [0.1, 0.2]},
    },
    "learned start": {"optimizer": OPTIMIZERS["momentum"], "start": True},
    "learned start and lr of adam": {"optimizer": OPTIMIZERS["adam"], "start": True, "learned": {"lr": 0.05}},
    "clipping": {"optimizer": OPTIMIZERS["momentum"], "clip": 0.3},
    "accumulation": {"optimizer": OPTIMIZERS["momentum"], "accumulation": 2},
    "groups": {
        "optimizer": lambda p: SGD([{"params": [*p][:2], "momentum": 0.9}, {"params": [*p][2:], "lr": 0.02}], lr=0.1)
    },
    "a parameter that the optimizer does not hold": {"optimizer": lambda p: SGD([*p][1:], lr=0.1)},
    "scheduler": {
        "optimizer": OPTIMIZERS["sgd"],
        "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    },
    "dropout and batch norm": {"optimizer": OPTIMIZERS["sgd"], "dropout": True},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_unrolled_is_the_difference_quotient_of_running_again(variant: str) -> None:
    program = program_of(**VARIANTS[variant])(Unrolled(None, "iterates"))
    torch.manual_seed(7)
    program.engine.probe()
    torch.manual_seed(7)
    wanted = program.quotient()
    torch.manual_seed(7)
    got = program.gradient()
    assert relative(got, wanted) < 1e-6


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_mode_is_reverse_mode(variant: str) -> None:
    make = program_of(**VARIANTS[variant])
    results = []
    for estimate in (Unrolled(None, "iterates"), Forward(100, kept=0.0)):
        program = make(estimate)
        torch.manual_seed(7)
        results.append(program.gradient())
    assert relative(results[1], results[0]) < 1e-10


@pytest.mark.parametrize("variant", VARIANTS)
def test_thrifty_memory_gives_the_same_bits(variant: str) -> None:
    make = program_of(**VARIANTS[variant])
    results = []
    for memory in ("iterates", "sqrt", "constant"):
        program = make(Unrolled(None, memory))  # type: ignore[arg-type]
        torch.manual_seed(7)
        results.append(program.gradient())
    assert relative(results[1], results[0]) < 1e-13
    assert relative(results[2], results[0]) < 1e-13


@pytest.mark.parametrize("memory", ["iterates", "sqrt", "constant"])
def test_the_last_t_of_t_updates_are_all_of_them(memory: Any) -> None:
    make = program_of(optimizer=OPTIMIZERS["momentum"])
    whole, cut = (make(Unrolled(steps, memory)).gradient() for steps in (None, T))
    assert torch.equal(whole, cut)
    shorter = make(Unrolled(T - 1, memory)).gradient()
    assert relative(shorter, whole) > 1e-3


@pytest.mark.parametrize("steps", [T, 7, 8, 11])
@pytest.mark.parametrize("kept", [2, 3, 5])
@pytest.mark.parametrize("memory", ["sqrt", "constant"])
def test_truncation_to_k_updates_is_the_same_whatever_is_kept_of_the_rest(memory: Any, kept: int, steps: int) -> None:
    make = program_of(optimizer=OPTIMIZERS["sgd"], steps=steps)
    got = make(Unrolled(kept, memory)).gradient()
    assert relative(got, make(Unrolled(kept, "iterates")).gradient()) < 1e-13


@pytest.mark.parametrize("memory", ["iterates", "sqrt", "constant"])
@pytest.mark.parametrize("steps", [3, T])  # of which the first is kept, or not
def test_a_truncated_loop_does_not_reach_its_start(memory: Any, steps: int) -> None:
    got = program_of(**VARIANTS["learned start"], steps=steps)(Unrolled(2, memory)).gradient()
    on_weights, on_start = got[:INPUTS], got[INPUTS:]
    assert float(on_weights.norm()) > 1e-3
    assert not on_start.any()


class Number(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.row = nn.Parameter(torch.tensor(value))


class Given(Problem):
    """A loss of every problem's number."""

    def __init__(self, *, loss: Callable[[Callable[[str], Tensor]], Tensor], **problem: Any) -> None:
        super().__init__(**problem)
        self.given = loss

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        return self.given(lambda name: self._peers[name].theta[0])


@pytest.mark.parametrize("memory", ["iterates", "sqrt", "constant"])
def test_every_update_is_differentiated_at_the_lower_optima_that_it_saw(memory: Any) -> None:
    """mid goes down by RATE low^2 free an update, while low, which top steers, and free, which nobody does, move."""
    rate, count = 0.1, 5

    def problem(name: str, value: float, loss: Callable[[Callable[[str], Tensor]], Tensor], **kwargs: Any) -> Given:
        return Given(name=name, module=Number(value), optimizer=lambda p: SGD(p, lr=rate), loss=loss, **kwargs)

    t1t2 = Implicit(Identity(1.0), ForwardOverReverse(), "after", "full")
    schedule = UpdateSchedule(unroll_steps=count)
    problems = [
        problem("top", 1.0, lambda p: p("mid").square() / 2),
        problem("mid", 3.0, lambda p: p("mid") * p("low").square() * p("free"), hypergradient=Unrolled(None, memory),
                update_schedule=schedule),
        problem("low", 0.2, lambda p: (p("low") - p("top")).square() / 2, hypergradient=t1t2),
        problem("free", 0.1, lambda p: (p("free") - 2).square() / 2),
    ]  # fmt: skip
    dependencies = {"u2l": {"top": ["low"]}, "l2u": {"low": ["mid"], "free": ["mid"], "mid": ["top"]}}
    engine = Engine(problems, dependencies, train_iters=count)
    engine.probe()
    number = {name: problem.theta[0] for name, problem in engine.problems.items()}
    slope, checked = 0.0, False
    for action in engine.actions():
        if action.problem == "mid":
            slope -= rate * 2 * float(number["low"].detach()) * float(number["free"].detach())
        if action.problem == "top":
            checked = True
            wanted = float(number["mid"].detach()) * slope  # times d low / d top, which is 1
            assert float(engine.gradient("top")[0]) == pytest.approx(wanted, rel=1e-12)
    assert checked


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("memory", ["iterates", "sqrt", "constant"])
def test_at_the_optimum_gradient_descent_unrolled_is_the_neumann_series(case: str, memory: Any) -> None:
    oracle = CASES[case]()
    got = hypergradient(oracle, lambda: Unrolled(None, memory), lr=0.05, steps=6)
    assert relative(got, oracle.expected(series(6))) < 1e-10


@pytest.mark.parametrize("make", [lambda: Unrolled(None, "sqrt"), lambda: Forward(10, kept=0.0)])
def test_one_step_maml_on_a_quadratic_is_its_closed_form(make: Callable[[], Hypergradient]) -> None:
    oracle = maml()
    assert relative(hypergradient(oracle, make), oracle.exact()) < 1e-12


@pytest.mark.parametrize("estimate", [Unrolled(None, "iterates"), Unrolled(None, "sqrt"), Forward(100, kept=0.0)])
def test_a_call_leaves_no_trace_and_a_second_one_gives_the_same_bits(estimate: Hypergradient) -> None:
    program = program_of(**VARIANTS["dropout and batch norm"])(estimate)
    program.engine.probe()
    execute(program.engine, *program.inner_loop())

    def everything() -> list[Tensor]:
        body = program.lower.module
        state = [t.clone() for s in program.lower.optimizer.state.values() for t in s.values() if t is not None]
        return [*(t.detach().clone() for t in (*body.parameters(), *body.buffers())), *state, torch.get_rng_state()]

    before = everything()
    gradients = [program.engine.gradient("upper")[0] for _ in range(2)]
    assert torch.equal(*gradients)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))


def test_the_next_inner_loop_starts_where_the_upper_problem_says() -> None:
    program = program_of(**VARIANTS["learned start"])(Unrolled(None, "iterates"))
    program.engine.train_iters = 2 * T + 1
    starts: list[list[Tensor]] = []
    program.lower.on_inner_loop_start = lambda: starts.append(  # type: ignore[method-assign]
        [p.detach().clone() for p in program.lower.theta]
    )
    program.engine.run()
    assert len(starts) == 3
    assert not program.lower.optimizer.state or starts[2]
    now = [2 * p.detach() for p in program.upper.module.start]
    assert all(torch.equal(a, b) for a, b in zip(starts[2], now, strict=True))


def test_a_learned_learning_rate_is_the_one_that_the_optimizer_uses() -> None:
    program = program_of(**VARIANTS["learned lr"])(Unrolled(None, "iterates"))
    program.engine.train_iters = T + 1
    program.engine.run()
    rate = program.lower.optimizer.param_groups[0]["lr"]
    assert rate == float(program.upper.module.options["lr"].detach().exp())
    assert rate != 0.1


def test_a_learned_learning_rate_of_each_group_is_the_one_that_the_group_uses() -> None:
    program = program_of(**VARIANTS["learned lr of each group"])(Unrolled(None, "iterates"))
    program.engine.train_iters = T + 1
    program.engine.run()
    rates = [group["lr"] for group in program.lower.optimizer.param_groups]
    assert rates == program.upper.module.options["lr"].detach().exp().tolist()
    assert rates[0] != pytest.approx(0.1, abs=1e-6) and rates[1] != pytest.approx(0.02, abs=1e-6)


def test_a_problem_says_what_its_optimizer_s_groups_are() -> None:
    class Layers(Lower):
        def parameter_groups(self) -> Iterable[dict[str, Any]]:
            return [{"params": list(layer.parameters())} for layer in (self.module[0], self.module[2])]

    torch.manual_seed(0)
    lower = Layers(name="lower", module=network(), optimizer=lambda groups: Adam(groups, lr=0.1))
    assert [len(group["params"]) for group in lower.optimizer.param_groups] == [2, 2]
    assert lower.update.groups == (0, 0, 1, 1)


def test_options_alone_are_refused_by_an_estimator_that_cannot_see_them() -> None:
    class Plain(Lower):
        def training_step(self, batch: Any) -> Tensor:
            return F.mse_loss(self(batch[0]).squeeze(1), batch[1])

    t1t2 = Implicit(Identity(1.0), ForwardOverReverse(), "after", "full")
    program = Program(t1t2, OPTIMIZERS["sgd"], learned={"lr": 0.1})
    program.lower.__class__ = Plain
    with pytest.raises(GraphError, match="does not differentiate through its options") as error:
        program.engine.probe()
    assert "unrolled" in str(error.value.fix)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learned": {"betas": 0.5}}, "cannot be learned"),
        ({"learned": {"lr": [0.1, 0.1]}}, "one number, or of one for each parameter group"),
        ({"learned": {"lr": [0.1] * 3}, "optimizer": in_two(SGD)}, "one number, or of one for each parameter group"),
        (
            {"learned": {"lr": 0.1}, "scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 2)},
            "learned and scheduled",
        ),
        ({"optimizer": lambda p: Adadelta(p)}, "no registered step"),
    ],
)
def test_what_cannot_be_unrolled_is_refused_before_anything_runs(change: dict[str, Any], words: str) -> None:
    kwargs = {"optimizer": OPTIMIZERS["sgd"], **change}
    with pytest.raises(ConfigError, match=words):
        Program(Unrolled(None, "iterates"), **kwargs).engine.probe()


def test_a_start_of_other_shapes_is_refused() -> None:
    program = Program(Unrolled(None, "iterates"), OPTIMIZERS["sgd"], start=True)
    program.upper.module.start = nn.ParameterList(list(program.upper.module.start)[:-1])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does not fit"):
        program.engine.run()


@pytest.mark.parametrize("hook", ["custom_optimizer_step", "grad_callback"])
def test_a_step_that_is_more_than_the_optimizers_is_refused(hook: str) -> None:
    changed = type("Changed", (Lower,), {hook: lambda self: None})
    problem = Program(Unrolled(None, "iterates"), OPTIMIZERS["sgd"])
    problem.lower.__class__ = changed
    with pytest.raises(ConfigError, match=hook):
        Engine(
            [problem.upper, problem.lower],
            problem.engine.graph,
            device=CPU,
            precision=Precision("fp32", CPU),
            train_iters=1,
        )


class Halved(Lower):
    def param_callback(self) -> None:
        with torch.no_grad():
            self.module[0].weight.mul_(0.5)


class HalvedUnseen(Lower):
    """Writes what autograd does not count, and from the third step on."""

    steps = 0

    def param_callback(self) -> None:
        self.steps += 1
        if self.steps > 2:
            self.module[0].weight.data.mul_(0.5)


@pytest.mark.parametrize("kind", [Halved, HalvedUnseen])
@pytest.mark.parametrize("estimate", [Unrolled(None, "iterates"), Forward(100, kept=0.0)])
def test_a_callback_that_writes_what_updates_gave_is_refused(kind: type[Lower], estimate: Hypergradient) -> None:
    program = Program(estimate, OPTIMIZERS["sgd"])
    program.lower.__class__ = kind
    program.engine.log_every = 1
    with pytest.raises(ConfigError, match=f"{kind.__name__}.param_callback changes what an update does"):
        program.engine.run()


@pytest.mark.parametrize("estimate", [Unrolled(None, "iterates"), Forward(100, kept=0.0)])
def test_a_callback_that_keeps_a_mean_beside_the_parameters_changes_nothing(estimate: Hypergradient) -> None:
    class Averaged(Lower):
        def param_callback(self) -> None:
            self.mean = [
                (p.detach() + m) / 2 for p, m in zip(self.theta, getattr(self, "mean", self.theta), strict=True)
            ]

    plain, averaged = (Program(estimate, OPTIMIZERS["momentum"]) for _ in range(2))
    averaged.lower.__class__ = Averaged
    assert torch.equal(plain.gradient(), averaged.gradient())


def test_forward_mode_refuses_more_hyperparameters_than_it_was_given() -> None:
    with pytest.raises(ConfigError, match="3 copies") as error:
        Program(Forward(2, kept=0.0), OPTIMIZERS["sgd"]).engine.run()
    assert "unrolled" in str(error.value.fix)


def test_every_optimizer_whose_step_is_known_is_tried_here() -> None:
    tried = {type(make([nn.Parameter(torch.zeros(1))])) for make in OPTIMIZERS.values()}
    assert tried == set(PURE_STEPS)


@pytest.mark.parametrize(
    "variant",
    ["learned lr", "learned lr, momentum and decay", "learned lr, momentum of each group, and decay of all", "adam"],
)
def test_the_fixed_point_of_an_update_without_iterations_is_its_last_step(variant: str) -> None:
    make = program_of(**VARIANTS[variant])
    once, last = (make(estimate).gradient() for estimate in (UpdateMap(0), Unrolled(1, "iterates")))
    assert float(last[INPUTS:].abs().min() if len(last) > INPUTS else last.norm()) > 1e-8
    assert relative(once, last) < 1e-13


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_fixed_point_of_an_update_is_its_last_step_differentiated_again_and_again(name: str) -> None:
    """Against the dense Jacobian of the recorded update, over parameters and optimizer state."""
    iterations = 3
    program = program_of(optimizer=OPTIMIZERS[name])(UpdateMap(iterations))
    execute(program.engine, *program.inner_loop())
    view = program.engine.recorder.views.view("lower", ("upper",))
    trajectory = view.trajectory()
    last = len(trajectory) - 1
    at = trajectory.recorded_iterate(last)
    v = tuple(torch.randn_like(t) for t in at.theta)
    keys = [(i, k) for i, entry in enumerate(at.state) for k in entry if k != "step"]
    flat = [*at.theta, *(at.state[i][k] for i, k in keys)]
    sizes = [t.numel() for t in flat]

    def phi(z: Tensor, weights: Tensor) -> Tensor:
        parts = [part.view_as(t) for part, t in zip(z.split(sizes), flat, strict=True)]
        theta = tuple(parts[: len(at.theta)])
        state = [dict(entry) for entry in at.state]
        for (i, k), part in zip(keys, parts[len(at.theta) :], strict=True):
            state[i][k] = part
        gradient = trajectory.gradient(last, theta, {"upper": (weights,)}, create_graph=True)
        after = trajectory.apply(last, Iterate(theta, tuple(state)), gradient)
        return torch.cat([*(t.flatten() for t in after.theta), *(after.state[i][k].flatten() for i, k in keys)])

    start = torch.cat([t.flatten() for t in flat])
    weights = program.upper.module.weights.detach().clone()
    on_z, on_weights = torch.autograd.functional.jacobian(phi, (start, weights))
    p = torch.cat([torch.cat([t.flatten() for t in v]), torch.zeros(len(start) - sum(t.numel() for t in v))])
    total = torch.zeros_like(p)
    for _ in range(iterations + 1):
        total, p = total + p, on_z.T @ p
    parts, _ = UpdateMap(iterations)(Level(view), v, None)
    assert relative(parts["upper"][0], on_weights.T @ total) < 1e-10
