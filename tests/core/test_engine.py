"""The engine: order of work in a step, hooks, accumulation, roll-back, precision, evaluation, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.evaluation import Evaluation
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem, loss_of
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.data.stream import stream
from mlorun.errors import ConfigError, GraphError, NonFiniteError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.first_order import FirstOrder
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.vectors import Vector
from mlorun.run.device import Precision
from mlorun.run.events import Event

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def t1t2() -> Implicit:
    return Implicit(Identity(1.0), ForwardOverReverse(), "after", "full")


def sgd(theta: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(theta, lr=0.1)


def engine(
    problems: Sequence[Problem], u2l: Any = None, l2u: Any = None, *, precision: str = "fp32", **kwargs: Any
) -> Engine:
    graph = ProblemGraph.build([problem.name for problem in problems], u2l, l2u)
    settings = {"train_iters": 4, **kwargs}
    return Engine(problems, graph, device=CPU, precision=Precision(precision, CPU), **settings)


def data(name: str, rows: int = 32, batch_size: int = 8, split: Any = None) -> Any:
    draw = torch.Generator().manual_seed(1)
    default = (torch.randn(rows, 3, generator=draw), torch.randint(2, (rows,), generator=draw))
    return stream(default if split is None else split, batch_size=batch_size, seed=0, name=name, device=CPU)


class Classify(Problem):
    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])


class Weighted(Problem):
    def training_step(self, batch: Any) -> Any:
        losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")[:, None]
        return (self.up(losses.detach()) * losses).mean()


class Meta(Problem):
    def training_step(self, batch: Any) -> Mapping[str, Tensor]:
        return {"loss": F.cross_entropy(self.low(batch[0]), batch[1]), "width": torch.tensor(2.0)}


def bilevel(update_schedule: UpdateSchedule | None = None, **kwargs: Any) -> list[Problem]:
    weight = nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())
    return [
        Meta(name="up", module=weight, optimizer=lambda theta: torch.optim.Adam(theta, lr=0.01), stream=data("up")),
        Weighted(
            name="low",
            module=nn.Linear(3, 2),
            optimizer=sgd,
            stream=data("low"),
            hypergradient=t1t2(),
            update_schedule=update_schedule,
            **kwargs,
        ),
    ]


def test_both_levels_learn_and_every_report_names_its_problem() -> None:
    events: list[Event] = []
    program = engine(bilevel(), {"up": ["low"]}, train_iters=40, log_every=20)
    before = [p.clone() for p in program.problems["up"].theta]
    metrics = program.run(events.append)
    told = [(event.step, event.kind, event.source) for event in events]
    assert told == [
        (step, kind, name)
        for step in (20, 40)
        for kind, name in (("train", "up"), ("train", "low"), ("hypergradient", "up"))
    ]
    assert set(events[0].metrics) == {"loss", "width"}
    assert metrics["up/width"] == 2.0
    assert any(not torch.equal(a, b) for a, b in zip(before, program.problems["up"].theta, strict=True))


def test_a_metric_that_is_a_function_is_made_only_when_a_report_is_due() -> None:
    calls: list[int] = []

    class Lazy(Classify):
        def training_step(self, batch: Any) -> Any:
            outputs = self(batch[0])
            return {"loss": F.cross_entropy(outputs, batch[1]), "largest": lambda: self.count(outputs)}

        def count(self, outputs: Tensor) -> Tensor:
            calls.append(program.step_count)
            return outputs.max()

    program = engine([Lazy(name="only", module=nn.Linear(3, 2), optimizer=sgd, stream=data("only"))], log_every=2)
    assert "only/largest" in program.run()
    assert calls == [2, 4]


def test_hooks_are_called_in_their_documented_order() -> None:
    said: list[str] = []

    class Hooked(Classify):
        def get_batch(self) -> Any:
            said.append("batch")
            return super().get_batch()

        def training_step(self, batch: Any) -> Any:
            said.append("loss")
            return super().training_step(batch)

        def on_inner_loop_start(self) -> None:
            said.append("inner")

        def grad_callback(self) -> None:
            said.append("grad" if all(p.grad is not None for p in self.theta) else "no grad")

        def custom_optimizer_step(self) -> None:
            said.append("optimizer")
            super().custom_optimizer_step()

        def param_callback(self) -> None:
            said.append("param")

        def epoch_callback(self) -> None:
            said.append("epoch")

    problem = Hooked(
        name="only",
        module=nn.Linear(3, 2),
        optimizer=sgd,
        stream=data("only", rows=16),
        update_schedule=UpdateSchedule(gradient_accumulation=2),
    )
    program = engine([problem], train_iters=2)
    program.probe()
    said.clear()
    program.run()
    assert said == ["inner", "batch", "loss", "grad", "batch", "loss", "grad", "optimizer", "param", "epoch"]


def test_the_scheduler_steps_once_an_optimizer_step_and_the_gradient_is_a_mean() -> None:
    rows = (torch.randn(8, 3), torch.randint(2, (8,)))
    results = []
    for parts in (1, 4):
        torch.manual_seed(5)
        problem = Classify(
            name="only",
            module=nn.Linear(3, 2),
            optimizer=lambda theta: torch.optim.SGD(theta, lr=0.5),
            scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
            stream=data("only", split=rows, batch_size=8 // parts),
            update_schedule=UpdateSchedule(gradient_accumulation=parts),
        )
        program = engine([problem], train_iters=parts)
        program.run()
        results.append(torch.cat([p.detach().flatten() for p in problem.theta]))
        assert problem.optimizer.param_groups[0]["lr"] == 0.25
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-6)


def test_the_gradient_is_clipped_at_the_optimizer_step() -> None:
    problem = Classify(
        name="only",
        module=nn.Linear(3, 2),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=1.0),
        stream=data("only"),
        gradient_clip=1e-3,
    )
    before = torch.cat([p.detach().clone().flatten() for p in problem.theta])
    engine([problem], train_iters=1).run()
    moved = torch.cat([p.detach().flatten() for p in problem.theta]) - before
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_roll_back_repeats_the_inner_loop_on_the_same_batches_under_the_new_upper_parameters() -> None:
    seen: list[Tensor] = []
    starts: list[Tensor] = []

    class Watched(Weighted):
        def get_batch(self) -> Any:
            batch = super().get_batch()
            seen.append(batch[0].clone())
            starts.append(self.module.weight.detach().clone())
            return batch

    problems = bilevel(UpdateSchedule(unroll_steps=2, roll_back=True))
    low = Watched(
        name="low",
        module=nn.Linear(3, 2),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1, momentum=0.9),
        stream=data("low"),
        hypergradient=t1t2(),
        update_schedule=UpdateSchedule(unroll_steps=2, roll_back=True),
    )
    program = engine([problems[0], low], {"up": ["low"]}, train_iters=2)
    program.probe()
    seen.clear()
    starts.clear()
    program.run()
    # two steps, then the two again
    assert len(seen) == 4
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    assert torch.equal(starts[0], starts[2])
    assert not torch.equal(starts[1], starts[3])
    assert low.stream is not None
    assert low.stream.state_dict() == {"epoch": 0, "position": 2}


def test_roll_back_returns_to_what_the_hook_of_the_inner_loop_made() -> None:
    starts: list[float] = []

    class Fresh(Weighted):
        def on_inner_loop_start(self) -> None:
            with torch.no_grad():
                self.module.bias.fill_(float(len(starts) + 5))

        def training_step(self, batch: Any) -> Any:
            starts.append(self.module.bias[0].item())
            return super().training_step(batch)

    up, _ = bilevel()
    low = Fresh(
        name="low",
        module=nn.Linear(3, 2),
        optimizer=sgd,
        stream=data("low"),
        hypergradient=FirstOrder(),
        update_schedule=UpdateSchedule(unroll_steps=2, roll_back=True),
    )
    program = engine([up, low], {"up": ["low"]}, train_iters=2)
    program.probe()
    starts.clear()
    program.run()
    first, second, again, last = starts
    assert first == again == 5.0
    assert second != 5.0 and last != 5.0


def test_roll_back_works_on_the_middle_of_three_levels() -> None:
    class Low(Problem):
        def training_step(self, batch: Any) -> Tensor:
            return (
                F.cross_entropy(self(batch[0]), batch[1])
                + self.top.module.log_decay.exp() * self.module.weight.square().sum()
            )

    class Middle(Problem):
        def training_step(self, batch: Any) -> Tensor:
            gap = (self.module.weight - self.low.module.weight).square().sum()
            return F.cross_entropy(self(batch[0]), batch[1]) + gap

    class Top(Problem):
        def training_step(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.middle(batch[0]), batch[1])

    class Decay(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.log_decay = nn.Parameter(torch.zeros(()))

    problems = [
        Top(name="top", module=Decay(), optimizer=sgd, stream=data("top")),
        Middle(
            name="middle",
            module=nn.Linear(3, 2),
            optimizer=sgd,
            stream=data("middle"),
            hypergradient=t1t2(),
            update_schedule=UpdateSchedule(unroll_steps=2, roll_back=True),
        ),
        Low(name="low", module=nn.Linear(3, 2), optimizer=sgd, stream=data("low"), hypergradient=t1t2()),
    ]
    program = engine(problems, {"top": ["low"]}, {"low": ["middle"], "middle": ["top"]}, train_iters=6)
    program.run()
    assert problems[0].module.log_decay.item() != 0


def test_a_users_optimizer_with_groups_and_its_scheduler_are_used_as_built() -> None:
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW([{"params": [module.weight], "lr": 0.1}, {"params": [module.bias], "lr": 0.0}])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=[0.1, 1e-12], total_steps=10)
    bias = module.bias.detach().clone()
    problem = Classify(name="only", module=module, optimizer=optimizer, scheduler=scheduler, stream=data("only"))
    program = engine([problem])
    program.run()
    assert program.problems["only"].optimizer is optimizer
    assert len(optimizer.param_groups) == 2
    assert scheduler.last_epoch == 4
    torch.testing.assert_close(module.bias.detach(), bias, rtol=0, atol=1e-9)


def test_reduce_on_plateau_is_given_the_loss() -> None:
    problem = Classify(
        name="only",
        module=nn.Linear(3, 2),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1),
        stream=data("only"),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=0.5, patience=0, threshold=10
        ),
    )
    engine([problem], train_iters=6).run()
    assert problem.optimizer.param_groups[0]["lr"] < 0.1


@pytest.mark.parametrize("kind", ["tensor", "tuple", "mapping"])
def test_batches_of_any_nesting_just_work(kind: str) -> None:
    x, y = torch.randn(16, 3), torch.randint(2, (16,))
    split: Any = {"tensor": x, "tuple": (x, y), "mapping": {"x": x, "y": y}}[kind]

    class AnyBatch(Problem):
        def training_step(self, batch: Any) -> Any:
            inputs = batch if kind == "tensor" else batch[0] if kind == "tuple" else batch["x"]
            return {"loss": self(inputs).square().mean()}

    rows = data("only", split=x)
    module = nn.Linear(3, 2)
    expected = [float(module(next(rows)).detach().square().mean()) for _ in range(2)]  # an epoch has two batches
    problem = AnyBatch(
        name="only", module=module, optimizer=partial(torch.optim.SGD, lr=0.0), stream=data("only", split=split)
    )
    events: list[Event] = []
    engine([problem], train_iters=2, log_every=1).run(events.append)
    assert [event.metrics["loss"] for event in events] == pytest.approx(expected)


def test_frozen_and_unused_parameters_stay_where_they_are() -> None:
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(self.used(x))

    problems = bilevel()
    module = Partly()
    low = Weighted(name="low", module=module, optimizer=sgd, stream=data("low"), hypergradient=t1t2())
    kept = [p.clone() for part in (module.unused, module.frozen) for p in part.parameters()]
    engine([problems[0], low], {"up": ["low"]}).run()
    now = [p for part in (module.unused, module.frozen) for p in part.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_lowest_problem() -> None:
    steps_too_far = partial(torch.optim.SGD, lr=float("inf"))
    low = Classify(name="low", module=nn.Linear(3, 2), optimizer=steps_too_far, stream=data("low"))
    with pytest.raises(NonFiniteError, match="loss of low is nan") as caught:
        engine([low], {}, log_every=2).run()
    assert caught.value.exit_code == 4
    assert caught.value.where == "problems.low, between steps 0 and 2 (engine.log_every=1 finds which)"


class NotANumber(Hypergradient):
    """An estimator that breaks down."""

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], Any]:
        return {name: vectors.scale(part, float("nan")) for name, part in level.lam.items()}, None


def diverge(problems: list[Problem]) -> None:
    problems[1].optimizer.param_groups[0]["lr"] = float("inf")


def spoil_the_upper_loss(problems: list[Problem]) -> None:
    up = problems[0]
    step = up.training_step

    def spoiled(batch: Any) -> Any:
        return loss_of(step(batch), "up") * float("nan")

    up.training_step = spoiled  # type: ignore[method-assign]


def break_the_estimator(problems: list[Problem]) -> None:
    problems[1].hypergradient = NotANumber()


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (diverge, "the loss of low is nan"),
        (spoil_the_upper_loss, "the loss of up is nan"),
        (break_the_estimator, "the hypergradient of up is not finite"),
    ],
)
def test_a_hypergradient_that_is_not_finite_never_reaches_the_parameters_and_is_named(
    spoil: Callable[[list[Problem]], None], words: str, at_once: bool
) -> None:
    problems = bilevel()
    spoil(problems)
    before = vectors.copy(problems[0].theta)
    made = engine(problems, {"up": ["low"]}, log_every=3)
    made.guard.at_once = at_once  # later: what happens where asking would wait for the device
    with pytest.raises(NonFiniteError, match=words) as caught:
        made.run()
    assert caught.value.exit_code == 4
    assert made.step_count == (0 if at_once else 3)
    if at_once:
        assert all(torch.equal(a, b) for a, b in zip(before, problems[0].theta, strict=True))
    assert vectors.is_finite(vectors.detach(problems[0].theta))


class Deaf(Problem):
    """Declared to read another problem, and does not."""

    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self(batch[0]), batch[1])


@pytest.mark.parametrize("deaf", ["low", "up"])
def test_an_edge_that_no_loss_reads_is_refused_before_anything_moves(deaf: str) -> None:
    problems = bilevel()
    place = {"up": 0, "low": 1}[deaf]
    problems[place] = Deaf(name=deaf, module=nn.Linear(3, 2), optimizer=sgd, stream=data(deaf), hypergradient=t1t2())
    program = engine(problems, {"up": ["low"]})
    rng = torch.get_rng_state()
    with pytest.raises(GraphError, match=r"Deaf\.training_step never reads") as caught:
        program.run()
    assert "drop the edge" in (caught.value.fix or "")
    assert torch.equal(rng, torch.get_rng_state())
    assert program.step_count == 0


class Both(Problem):
    """Reads the middle and the lowest problem."""

    def training_step(self, batch: Any) -> Any:
        return F.cross_entropy(self.low(batch[0]), batch[1]) + self.up(batch[0][:, :1]).mean()


class Penalized(Meta):
    def training_step(self, batch: Any) -> Any:
        weights = sum(p.square().sum() for p in self.module.parameters())
        return F.cross_entropy(self.low(batch[0]), batch[1]) + self.top.module.weight.exp().sum() * weights


def nested(l2u: Any) -> Engine:
    top = Both(name="top", module=nn.Linear(1, 1), optimizer=sgd, stream=data("top"))
    low = bilevel()[1]
    weight = nn.Sequential(nn.Linear(1, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
    up = Penalized(name="up", module=weight, optimizer=sgd, stream=data("up"), hypergradient=t1t2())
    return engine([top, up, low], {"top": ["up"], "up": ["low"]}, l2u)


PAST = {"low": ["up", "top"], "up": ["top"]}


def test_a_nested_program_is_probed_without_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    nested(PAST).probe()
    assert not caplog.records


def test_an_estimator_that_cannot_differentiate_a_problem_that_steers_others_is_refused() -> None:
    program = nested(PAST)
    program.problems["up"].hypergradient = Unrolled(None, "iterates")
    with pytest.raises(GraphError, match="up steers low and is differentiated through itself") as caught:
        program.probe()
    assert "up.hypergradient=cg" in (caught.value.fix or "")


def test_a_problem_below_a_nested_one_needs_an_estimator_that_solves() -> None:
    program = nested(PAST)
    program.problems["low"].hypergradient = Unrolled(None, "iterates")
    with pytest.raises(GraphError, match="needs solves with low's Hessian") as caught:
        program.probe()
    assert "up.hypergradient.nested=own_loss" in (caught.value.fix or "")
    program.problems["up"].hypergradient = Implicit(Identity(1.0), ForwardOverReverse(), "after", "own_loss")
    program.probe()


def test_below_a_nested_problem_first_order_is_a_constant(caplog: pytest.LogCaptureFixture) -> None:
    program = nested(PAST)
    program.problems["low"].hypergradient = FirstOrder()
    program.probe()


def test_a_problem_that_is_read_past_the_declared_dependencies_is_refused() -> None:
    with pytest.raises(GraphError, match=r"Both\.training_step reads self\.low, and no dependency says so"):
        nested(None).probe()


def remarks(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(record.getMessage() for record in caplog.records)


def test_a_hypergradient_that_nobody_uses_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    up, low = bilevel()
    engine([up, low], {"up": ["low"]}).probe()
    assert not caplog.records
    up.hypergradient = t1t2()
    engine([up, low], {"up": ["low"]}).probe()
    assert "problems.up.hypergradient is not used" in remarks(caplog)


def test_first_order_with_nothing_of_the_first_order_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    up, low = bilevel()
    low.hypergradient = FirstOrder()
    engine([up, low], {"up": ["low"]}).probe()
    assert "up learns nothing" in remarks(caplog)


def test_a_loss_with_a_state_of_its_own_is_pointed_out(caplog: pytest.LogCaptureFixture) -> None:
    up, low = bilevel()
    step, own = low.training_step, torch.Generator().manual_seed(0)

    def noisy(batch: Any) -> Any:
        return step((batch[0] + torch.randn(batch[0].shape, generator=own), batch[1]))

    low.training_step = noisy  # type: ignore[method-assign]
    engine([up, low], {"up": ["low"]}).probe()
    assert "the loss of low is" in remarks(caplog)


def test_a_probe_leaves_streams_and_random_numbers_as_they_were() -> None:
    program = engine(bilevel(), {"up": ["low"]})
    rng = torch.get_rng_state()
    program.probe()
    assert torch.equal(rng, torch.get_rng_state())
    for problem in program.problems.values():
        assert problem.stream is not None
        assert problem.stream.state_dict() == {"epoch": 0, "position": 0}


def test_a_mistyped_problem_gets_the_nearest_name() -> None:
    class Typo(Problem):
        def training_step(self, batch: Any) -> Any:
            return self.lwo(batch[0]).sum()

    problems = [Typo(name="up", module=nn.Linear(3, 2), optimizer=sgd, stream=data("up")), bilevel()[1]]
    with pytest.raises(GraphError, match=r"self\.lwo") as caught:
        engine(problems, {"up": ["low"]}).probe()
    assert "did you mean low" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (lambda p, b: "loss", "returned str"),
        (lambda p, b: p(b[0]), "not a scalar"),
        (lambda p, b: torch.ones(()), "no parameter"),
    ],
)
def test_a_step_that_returns_no_usable_loss_is_refused(result: Any, words: str) -> None:
    class Odd(Problem):
        def training_step(self, batch: Any) -> Any:
            return result(self, batch)

    problem = Odd(name="only", module=nn.Linear(3, 2), optimizer=sgd, stream=data("only"))
    with pytest.raises(ConfigError, match=words):
        engine([problem]).probe()


def test_a_problem_that_is_differentiated_through_needs_a_hypergradient() -> None:
    problems = bilevel()
    problems[1].hypergradient = None
    with pytest.raises(GraphError, match="no hypergradient"):
        engine(problems, {"up": ["low"]})


def test_a_lower_problem_that_maximizes_is_refused() -> None:
    problems = bilevel()
    problems[1].optimizer.param_groups[0]["maximize"] = True
    with pytest.raises(GraphError, match="maximizes"):
        engine(problems, {"up": ["low"]})


def test_evaluation_leaves_no_trace_and_averages_over_samples() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    problem = Classify(name="only", module=module, optimizer=sgd, stream=data("only"))
    split = (torch.randn(10, 3), torch.randint(2, (10,)))
    whole, parts = (Evaluation("only", "test", split, size) for size in (10, 3))
    program = engine([problem], train_iters=1, evaluations=[whole])
    program.run()
    rng, statistics = torch.get_rng_state(), [b.clone() for b in module.buffers()]
    assert program.evaluate()["test/loss"] == pytest.approx(parts.run(program.program)["test/loss"], rel=1e-5)
    assert torch.equal(rng, torch.get_rng_state())
    assert all(map(torch.equal, statistics, module.buffers()))
    assert all(m.training for m in module.modules())
    module.eval()
    assert F.cross_entropy(module(split[0]), split[1]).item() == pytest.approx(
        program.evaluate()["test/loss"], rel=1e-5
    )


def test_an_evaluation_that_draws_has_the_engines_random_numbers_and_not_the_callers() -> None:
    class Sampled(Classify):
        def evaluation_step(self, batch: Any) -> Any:
            return {"loss": super().training_step(batch), "sample": torch.rand(())}

    split = (torch.randn(4, 3), torch.randint(2, (4,)))
    problem = Sampled(name="only", module=nn.Linear(3, 2), optimizer=sgd, stream=data("only"))
    program = engine([problem], train_iters=2, evaluations=[Evaluation("only", "test", split, 4)], seed=3)
    program.run()
    samples = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        samples.append(program.evaluate()["test/sample"])
        assert torch.initial_seed() == seed
    assert samples[0] == samples[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_trains_on_the_cpu_and_keeps_parameters_in_float32(precision: str) -> None:
    torch.manual_seed(1)
    problems = bilevel()
    before = [p.detach().clone() for p in problems[0].theta]
    program = engine(problems, {"up": ["low"]}, precision=precision, train_iters=8)
    metrics = program.run()
    assert all(torch.isfinite(p).all() and p.dtype == torch.float32 for each in problems for p in each.theta)
    assert metrics["low/loss"] < 2
    assert any(not torch.equal(a, b) for a, b in zip(before, problems[0].theta, strict=True))


def test_an_upper_gradient_in_half_precision_is_close_to_that_in_float32() -> None:
    got = []
    for precision in ("fp32", "fp16"):
        torch.manual_seed(1)
        problems = bilevel()
        seen: list[Tensor] = []
        problems[0].custom_optimizer_step = lambda: None  # type: ignore[method-assign]
        up = problems[0]
        up.grad_callback = lambda up=up, seen=seen: seen.append(torch.cat([p.grad.flatten() for p in up.theta]))  # type: ignore[method-assign, misc]
        program = engine(problems, {"up": ["low"]}, precision=precision, train_iters=1)
        scaler = problems[0].update.scaler
        scale = 1.0 if scaler is None else scaler.get_scale()
        program.run()
        got.append(seen[0] / scale)
    assert (got[0] - got[1]).norm() / got[0].norm() < 0.02


def test_stopping_ends_the_run_after_the_step_at_hand() -> None:
    class Stops(Classify):
        def param_callback(self) -> None:
            if program.step_count == 2:
                program.stop()

    program = engine([Stops(name="only", module=nn.Linear(3, 2), optimizer=sgd, stream=data("only"))], train_iters=50)
    program.run()
    assert program.step_count == 3
    assert program.stopped


def test_no_steps_is_a_run_too() -> None:
    split = (torch.randn(4, 3), torch.randint(2, (4,)))
    problem = Classify(name="only", module=nn.Linear(3, 2), optimizer=sgd, stream=data("only"))
    assert set(engine([problem], train_iters=0, evaluations=[Evaluation("only", "test", split, 4)]).run()) == {
        "test/loss"
    }


def test_telemetry_is_the_norms_and_the_cosine_of_the_last_gradient_before_a_report() -> None:
    events: list[Event] = []
    program = engine(bilevel(), {"up": ["low"]}, train_iters=7, log_every=3)
    gradients: list[tuple[Tensor, ...]] = []
    up = program.problems["up"]
    up.grad_callback = lambda: gradients.append(vectors.copy([p.grad for p in up.theta if p.grad is not None]))
    program.run(events.append)
    told = {event.step: event.metrics for event in events if event.kind == "hypergradient"}
    assert set(told) == {3, 6, 7}
    for step, metrics in told.items():
        now, before = gradients[step - 1], gradients[step - 2]
        assert set(metrics) == {"direct_norm", "indirect_norm", "cosine_to_previous", "low/cotangent_norm"}
        assert metrics["cosine_to_previous"] == pytest.approx(float(vectors.cosine(now, before)), rel=1e-5)
        if metrics["direct_norm"] == 0:
            assert metrics["indirect_norm"] == pytest.approx(float(vectors.norm(now)), rel=1e-5)


def test_telemetry_of_a_slow_upper_problem_is_of_its_last_step_before_the_report() -> None:
    events: list[Event] = []
    program = engine(
        bilevel(update_schedule=UpdateSchedule(unroll_steps=4)), {"up": ["low"]}, train_iters=20, log_every=10
    )
    program.run(events.append)
    assert [event.step for event in events if event.kind == "hypergradient"] == [10, 20]


def test_a_solver_reports_its_residual_and_iterations() -> None:
    residuals = []
    for iterations in (1, 2, 4, 8):
        torch.manual_seed(0)
        events: list[Event] = []
        program = engine(bilevel(), {"up": ["low"]}, train_iters=1, log_every=1)
        solve = ConjugateGradient(iterations, 0.0, 1e-5, False)
        program.problems["low"].hypergradient = Implicit(solve, ForwardOverReverse(), "after", "full")
        program.run(events.append)
        (measured,) = (event.metrics for event in events if event.kind == "hypergradient")
        # 4 of 8 directions have no curvature: it is through after 4, or 5 with rounding
        assert measured["low/iterations"] == iterations or (iterations == 8 and measured["low/iterations"] < 6)
        residuals.append(measured["low/residual"])
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[0] > 1e-2
    assert residuals[-1] < 1e-4


def test_nothing_is_measured_between_reports() -> None:
    program = engine(bilevel(), {"up": ["low"]}, train_iters=6, log_every=6)
    measured: list[bool] = []
    gradient = program.adjoint.gradient

    def spied(upper: str, loss: Tensor, scale: Tensor | None = None, *, measure: bool = False) -> Any:
        result = gradient(upper, loss, scale, measure=measure)
        measured.append(bool(result.telemetry))
        assert measure == bool(result.telemetry)
        return result

    program.adjoint.gradient = spied
    program.run()
    assert measured == [False] * 5 + [True]
