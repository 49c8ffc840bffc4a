"""What is seen of a program before its first step: metrics, evaluations, modules, and who ever steps."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.evaluation import Evaluation
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.core.state import on_host
from mlorun.data.batches import require_samples
from mlorun.errors import ConfigError, DataError, GraphError
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.run.checkpoint import load, save
from mlorun.run.events import Event

SPLIT = (torch.arange(12.0).reshape(6, 2), torch.ones(6))


class Own(Problem):
    """One whose batches, metrics and evaluations are given."""

    metrics: ClassVar[Any] = {}
    evaluation: ClassVar[Any] = {}
    whole: ClassVar[Any] = None

    def get_batch(self) -> Tensor:
        return torch.ones(4, 2)

    def training_step(self, batch: Tensor) -> Any:
        return {"loss": self(batch).square().mean(), **self.metrics}

    def evaluation_step(self, batch: Any) -> Any:
        return self.evaluation

    def evaluation_end(self, outputs: Any) -> Any:
        return self.whole


def engine(problem: type[Problem] = Own, module: nn.Module | None = None, **given: Any) -> Engine:
    made = type("Given", (problem,), given)
    only = made(name="only", module=module or nn.Linear(2, 1), optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1))
    return Engine([only], train_iters=2, evaluations=[Evaluation("only", "test", SPLIT, 4)])


@pytest.mark.parametrize("metric", ["text", torch.ones(3), None, [1.0]])
@pytest.mark.parametrize("key", ["metrics", "evaluation", "whole"])
def test_a_metric_that_is_no_number_is_refused_with_its_name(metric: Any, key: str) -> None:
    # of a split larger than a batch, the metrics of the whole are not known before
    given: Any = {key: {"phase": metric}}
    program = engine(**given)
    with pytest.raises(ConfigError, match="a metric is one number") as fault:
        program.probe() if key != "whole" else program.evaluate()
    assert fault.value.where is not None and fault.value.where.endswith(": phase")


def test_a_number_is_a_metric() -> None:
    events: list[Event] = []
    program = engine(metrics={"rate": 0.5, "on": True}, evaluation={"share": 0.25}, whole={"f1": 1})
    metrics = program.run(events.append)
    assert {"only/rate": 0.5, "only/on": 1.0, "test/share": 0.25, "test/f1": 1.0}.items() <= metrics.items()
    assert program.metric_names == ("only/loss", "only/rate", "only/on", "test/share")


def test_an_evaluation_returns_metrics_and_its_end_may_return_nothing() -> None:
    with pytest.raises(ConfigError, match="evaluation_step returned NoneType"):
        engine(evaluation=None).probe()
    assert engine(evaluation={"share": 1.0}).evaluate() == {"test/share": 1.0}


def test_an_error_in_an_evaluation_is_seen_before_the_first_step() -> None:
    def broken(self: Problem, batch: Any) -> Any:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as fault:
        engine(evaluation_step=broken).probe()
    assert fault.value.__notes__ == ["in the evaluation of only on test"]


def test_a_loss_that_is_not_finite_before_any_step_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        engine(training_step=lambda self, batch: float("nan") * self(batch).mean()).probe()
    assert caplog.messages == ["the loss of only is nan on its first batch, before any step: see its data and its loss"]


def test_a_state_that_cannot_be_saved_is_refused_before_the_first_step() -> None:
    with pytest.raises(ConfigError, match="state_dict gives no mapping"):
        engine(state_dict=lambda self: [1]).probe()
    with pytest.raises(ConfigError, match=r"Given\.state_dict gives what no checkpoint can hold") as fault:
        engine(state_dict=lambda self: {"shape": Pair(torch.ones(1), 2)}).probe()
    assert fault.value.seen is not None and fault.value.seen.endswith("Pair")


class Pair(NamedTuple):
    x: Tensor
    samples: int


@dataclass
class Record:
    x: Tensor
    samples: int


class Lower(Problem):
    """Makes its own batches, of a kind that is given."""

    upper: Problem
    kind: ClassVar[Any] = Pair

    def get_batch(self) -> Any:
        return {"pair": self.kind(torch.full((3, 2), float(self.step + 1)), 3)}

    def training_step(self, batch: Any) -> Tensor:
        pair = batch["pair"]
        return (self.upper.module.weight.sum() * self(pair.x)).square().sum() / pair.samples


class Upper(Problem):
    lower: Problem

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Tensor:
        return self.lower.module.weight.square().sum()


def two_levels(lower: type[Problem]) -> Engine:
    torch.manual_seed(0)
    options: dict[str, Any] = {"optimizer": lambda theta: torch.optim.SGD(theta, lr=0.01)}
    schedule = UpdateSchedule(unroll_steps=3)
    hypergradient = Unrolled(steps=None, memory="iterates")
    low = lower(name="lower", module=nn.Linear(2, 1), hypergradient=hypergradient, update_schedule=schedule, **options)
    top = Upper(name="upper", module=nn.Linear(2, 1), **options)
    return Engine([top, low], {"u2l": {"upper": ["lower"]}}, train_iters=6)


def test_named_tuples_of_a_recipe_s_own_batches_come_through_a_checkpoint(tmp_path: Path) -> None:
    whole, cut = two_levels(Lower), two_levels(Lower)
    whole.run()
    for step in cut.steps():
        if step == 2:  # inside an inner loop, with two batches recorded
            path = save(tmp_path, step, on_host(cut.state_dict()))
            break
    again = two_levels(Lower)
    again.load_state_dict(load(path))
    again.run()
    assert torch.equal(again.problems["upper"].theta[0], whole.problems["upper"].theta[0])


def test_recorded_batches_that_no_checkpoint_can_hold_are_refused_before_the_first_step() -> None:
    records = type("Records", (Lower,), {"kind": Record})
    with pytest.raises(ConfigError, match=r"Records\.get_batch gives what no checkpoint can hold"):
        two_levels(records).probe()


class Grows(nn.Linear):
    """A module that makes a parameter when it is called."""

    def forward(self, input: Tensor) -> Tensor:
        if "late" not in self._parameters:
            self.late = nn.Parameter(torch.ones(()))
        return super().forward(input) * self.late


def test_a_module_that_makes_parameters_when_it_is_called_is_refused() -> None:
    with pytest.raises(ConfigError, match="made parameters when it was called") as fault:
        engine(module=Grows(2, 1)).probe()
    assert fault.value.seen == "late of Grows"


@pytest.mark.parametrize(("given", "seen"), [(None, "NoneType"), ([("weight", 1)], "tuple")])
def test_what_a_problem_trains_are_parameters(given: Any, seen: str) -> None:
    with pytest.raises(ConfigError, match="gives what is no parameter") as fault:
        engine(trainable_parameters=lambda self: given)
    assert fault.value.seen == seen


class Discriminator(Problem):
    """Tells 2 from what the generator makes."""

    def get_batch(self) -> Tensor:
        return torch.ones(4, 2)

    def training_step(self, batch: Tensor) -> Tensor:
        return self(self.generator(batch).detach()).mean() - self(batch[:, :1] + 1).mean()


class Generator(Problem):
    """Makes what the discriminator takes for 2."""

    def get_batch(self) -> Tensor:
        return torch.ones(4, 2)

    def training_step(self, batch: Tensor) -> Tensor:
        return -self.discriminator(self(batch)).mean()


class Deaf(Generator):
    """A generator without a gradient."""

    def training_step(self, batch: Tensor) -> Tensor:
        with torch.no_grad():
            told = self.discriminator(self(batch)).mean()
        return told + self(batch).mean()


def game(generator: type[Problem] = Generator, unroll_steps: int = 1) -> Engine:
    def sgd(theta: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(theta, lr=0.1)

    schedule = UpdateSchedule(unroll_steps=unroll_steps)
    players = [
        Discriminator(name="discriminator", module=nn.Linear(1, 1), optimizer=sgd, update_schedule=schedule),
        generator(name="generator", module=nn.Linear(2, 1), optimizer=sgd),
    ]
    return Engine(players, {"l2u": {"discriminator": ["generator"]}, "u2l": {}}, train_iters=3)


def test_players_of_a_game_differentiate_through_nobody() -> None:
    program = game()
    before = [p.detach().clone() for one in program.problems.values() for p in one.theta[:1]]
    program.run()
    after = [p.detach() for one in program.problems.values() for p in one.theta[:1]]
    assert program.graph.differentiated == frozenset()
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_peer_that_is_read_without_a_gradient_is_not_said_to_be_unread() -> None:
    with pytest.raises(GraphError, match=r"Deaf\.training_step reads self\.discriminator where no gradient passes"):
        game(Deaf).probe()


def test_a_problem_that_never_steps_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        game(unroll_steps=3).probe()
        assert not caplog.messages
        game(unroll_steps=4).probe()
    assert caplog.messages == [
        "generator takes no step in engine.train_iters=3: see mlorun graph for the order of steps"
    ]


def test_a_split_has_samples_and_its_numbers_that_are_not_finite_are_said(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match="the split test has no samples"):
        require_samples("test", (torch.zeros(0, 2), torch.zeros(0)))
    inputs = torch.zeros(4, 2)
    inputs[1, 0] = float("nan")
    with caplog.at_level(logging.WARNING):
        require_samples("train", {"x": inputs, "y": torch.zeros(4, dtype=torch.long)})
    assert caplog.messages == ["the split train['x']: NaN or infinity in 1 of 4 samples"]


class Normalized(Upper):
    """Calls the lower network, in evaluation mode or as it is."""

    evaluating: ClassVar[bool] = True

    def training_step(self, batch: None) -> Tensor:
        module = self.lower.module
        module.train(not self.evaluating)
        loss = module(torch.arange(8.0).reshape(4, 2)).square().sum()
        module.train()
        return loss


class Layered(Lower):
    def training_step(self, batch: Any) -> Tensor:
        return self.upper.module.weight.sum() * super().training_step(batch)


class Stepping(Layered):
    def custom_optimizer_step(self) -> None:
        self.optimizer.step()


@pytest.mark.parametrize(
    ("lower", "evaluating", "said"),
    [
        (Layered, False, None),
        (Layered, True, "reads running statistics of lower's BatchNorm layers"),
        (Stepping, False, r"Stepping.custom_optimizer_step may settle elsewhere"),
    ],
)
def test_what_an_implicit_hypergradient_takes_for_constant_is_said(
    lower: type[Problem], evaluating: bool, said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    hypergradient = Implicit(Identity(scale=1.0), ForwardOverReverse(), linearize="after", nested="full")
    options: dict[str, Any] = {"optimizer": lambda theta: torch.optim.SGD(theta, lr=0.01)}
    low = lower(name="lower", module=module, hypergradient=hypergradient, **options)
    top = type("Top", (Normalized,), {"evaluating": evaluating})(name="upper", module=nn.Linear(2, 1), **options)
    with caplog.at_level(logging.WARNING):
        Engine([top, low], {"u2l": {"upper": ["lower"]}}, train_iters=2).probe()
    assert [said in message for message in caplog.messages] == [True] if said else caplog.messages == []
