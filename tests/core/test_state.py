"""One owner of state: an engine that goes on from a saved state gives the same bits as one that was never stopped."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

import mlorun
from mlorun.config.locations import options
from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.core.state import live_tensors, plain_data
from mlorun.data.stream import stream
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.run import checkpoint
from mlorun.run.events import Event
from mlorun.verify.point import equal

pytestmark = pytest.mark.usefixtures("empty_folder")

STEPS = 11
SMALL = [
    "experiment=mwn_digits",
    "classifier.module.sizes=[64,10]",
    "reweight.module.hidden=3",
    "classifier.batch_size=20",
    "reweight.batch_size=20",
    "classifier.evaluate_on=[]",
    f"engine.train_iters={STEPS}",
    "engine.log_every=4",
    "engine.valid_every=0",
]
TRUST = "trusted_packages=[tests]"
THREE = [
    TRUST, "problems.reweight._target_=tests.core.levels.Middle", "+problem@problems.top=reweight",
    "problems.top._target_=tests.core.levels.Top", "top.module.hidden=2", "top.batch_size=20",
    "+dependencies.u2l.top=[reweight]",
    "+dependencies.l2u.classifier=[reweight,top]", "+dependencies.l2u.reweight=[top]",
]  # fmt: skip
LOADED = "data._target_=tests.core.levels.shifted_digits"
ESTIMATORS = sorted(set(options("hypergradient")) - {"none", "reinforce"})
# programs whose future depends on more than parameters
PROGRAMS: dict[str, list[str]] = {
    **{
        name: [*SMALL, f"classifier.hypergradient={name}", "classifier.unroll_steps=3"]
        + (["classifier.hypergradient.largest_size=100"] if name in ("forward", "real_time") else [])
        + (["classifier.hypergradient.samples=2"] if name == "evolution" else [])
        for name in ESTIMATORS
    },
    "dropout": [*SMALL, "classifier.module.sizes=[64,8,10]", "classifier.module.dropout=0.3"],
    "accumulation": [*SMALL, "classifier.gradient_accumulation=3", "reweight.gradient_accumulation=2"],
    "accumulation, unrolled": [
        *SMALL, "classifier.gradient_accumulation=2", "classifier.unroll_steps=2", "classifier.hypergradient=unrolled",
        "classifier.hypergradient.memory=sqrt",
    ],
    "truncated, sqrt": [
        *SMALL, "classifier.hypergradient=truncated", "classifier.hypergradient.steps=2",
        "classifier.hypergradient.memory=sqrt", "classifier.unroll_steps=6",
    ],
    "tasks, truncated": [
        "experiment=maml_sinusoid", *SMALL[6:], "learner.unroll_steps=6", "learner.hypergradient=truncated",
        "learner.hypergradient.steps=2", "meta.evaluate_on=[]",
    ],
    "learned rate of each layer": [
        "experiment=learned_lr", *SMALL[5:], "classifier.unroll_steps=4", "classifier.module.sizes=[64,8,10]",
    ],
    "roll back": [
        *SMALL, "classifier.unroll_steps=4", "classifier.roll_back=true", "classifier.module.sizes=[64,8,10]",
        "classifier.module.dropout=0.3",
    ],
    "adam, unrolled, clipped": [
        *SMALL, "classifier.optimizer=adamw", "classifier.hypergradient=unrolled", "classifier.unroll_steps=4",
        "classifier.gradient_clip=0.5",
    ],
    "schedules": [*SMALL, "classifier.scheduler=multi_step", "classifier.scheduler.milestones=[3,7]",
                  "reweight.scheduler=reduce_on_plateau", "classifier.warmup_steps=4"],
    "bf16": [*SMALL, "precision=bf16"],
    "fp16": [*SMALL, "precision=fp16"],
    "learned rate, unrolled": ["experiment=hpo_digits", *SMALL[5:], "classifier.unroll_steps=4"],
    "learned rate, forward": [
        "experiment=hpo_digits", *SMALL[5:], "classifier.unroll_steps=4", "classifier.hypergradient=forward",
    ],
    "three levels": [
        *SMALL, *THREE, "reweight.hypergradient=cg", "reweight.hypergradient.solve.iterations=2",
        "classifier.unroll_steps=2",
    ],
    "three levels, roll back": [
        *SMALL, *THREE, "reweight.hypergradient=neumann", "reweight.hypergradient.nested=own_loss",
        "classifier.hypergradient=unrolled", "classifier.unroll_steps=2", "classifier.roll_back=true",
    ],
    "Dataset": [*SMALL, TRUST, LOADED, "classifier.unroll_steps=2", "classifier.hypergradient=unrolled"],
    "Dataset, workers": [*SMALL, TRUST, LOADED, "classifier.workers=2", "reweight.workers=1"],
    "left out": [*SMALL, "nonfinite.policy=skip", "classifier.hypergradient=cg",
                 "classifier.hypergradient.solve.warm_start=true", "classifier.optimizer.lr=1e30"],
    "tasks of the recipe": [
        "experiment=maml_sinusoid", *SMALL[6:], "learner.unroll_steps=3", "meta.gradient_accumulation=2",
        "meta.evaluate_on=[]", "data.train_tasks=7", "learner.batch_size=2",
    ],
}  # fmt: skip


@cache
def config_of(program: str) -> DictConfig:
    """Composed once; an engine that is built from it changes nothing in it."""
    return mlorun.compose(PROGRAMS[program])


def end_workers(engine: Engine) -> None:
    """Now, and not when Python comes to collect the engine: then each of them may take five seconds."""
    for problem in engine.problems.values():
        if problem.stream is not None:
            problem.stream.load_state_dict(problem.stream.state_dict())


def trained(engine: Engine) -> tuple[str, list[str]]:
    events: list[Event] = []
    engine.run(events.append)
    end_workers(engine)
    # as text: a NaN is as it was
    return checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}), [*map(repr, events)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_run_that_goes_on_from_a_saved_state_gives_the_same_bits(program: str, tmp_path: Path) -> None:
    config = config_of(program)
    whole = trained(mlorun.build(config))
    for stop in (2, 5):
        events: list[Event] = []
        first = mlorun.build(config)
        first.probe()
        for step in first.steps():
            if step % first.log_every == 0:
                first.report(events.append)
            if step == stop:
                path = checkpoint.save(tmp_path, stop, first.state_dict())
                break
        end_workers(first)
        torch.manual_seed(999)  # a new process has other random numbers
        random.seed(999)
        second = mlorun.build(config)
        second.load_state_dict(checkpoint.load(path))
        sha, later = trained(second)
        assert (sha, [*map(repr, events), *later]) == whole


def test_a_run_may_be_saved_in_the_middle_of_a_global_step(tmp_path: Path) -> None:
    config = config_of("accumulation, unrolled")
    whole = trained(mlorun.build(config))[0]
    middles = 0
    for count in (3, 4, 7, 9):
        first = mlorun.build(config)
        for done, _ in enumerate(first.actions()):
            if done == count:
                break
        middles += first.state_dict()["actions_done"] > 0
        second = mlorun.build(config)
        second.load_state_dict(first.state_dict())
        assert trained(second)[0] == whole
    assert middles == 2


def test_what_the_next_report_will_say_and_every_mode_come_back() -> None:
    config = config_of("roll back")
    first, second = mlorun.build(config), mlorun.build(config)
    for step in first.steps():
        if step == 6:
            break
    first.problems["classifier"].module.eval()
    second.load_state_dict(first.state_dict())
    assert not any(module.training for module in second.problems["classifier"].module.modules())
    events: dict[str, list[Event]] = {"first": [], "second": []}
    metrics = [engine.report(events[name].append) for name, engine in (("first", first), ("second", second))]
    assert "reweight/loss" in metrics[0]
    assert metrics[0] == metrics[1]
    assert [event.kind for event in events["first"]] == ["train", "train", "hypergradient"]
    assert events["first"] == events["second"]


def test_saving_changes_nothing_and_shares_nothing() -> None:
    config = config_of("unrolled")
    whole = trained(mlorun.build(config))[0]
    first, second = mlorun.build(config), mlorun.build(config)
    for step in first.steps():
        state = first.state_dict()
        if step == 5:
            second.load_state_dict(state)
    assert trained(first)[0] == whole
    assert trained(second)[0] == whole


def test_two_engines_built_one_after_the_other_give_what_each_gives_alone() -> None:
    one, other = (mlorun.compose([*PROGRAMS["dropout"], f"seed={seed}"]) for seed in (0, 1))
    alone = [trained(mlorun.build(config))[0] for config in (one, other)]
    engines = [mlorun.build(config) for config in (one, other)]
    assert [trained(engine)[0] for engine in engines] == alone
    first, second = mlorun.build(one), mlorun.build(other)
    for _ in first.steps():
        if first.step_count == 4:
            break
    trained(second)
    assert trained(first)[0] == alone[0]


def test_engines_that_take_turns_give_what_each_gives_alone() -> None:
    one, other = (mlorun.compose([*PROGRAMS["dropout"], f"seed={seed}"]) for seed in (0, 1))
    alone = [trained(mlorun.build(config))[0] for config in (one, other)]
    engines = [mlorun.build(config) for config in (one, other)]
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    steps = [engine.steps() for engine in engines]
    for _ in range(STEPS + 1):
        for each in steps:
            next(each, None)
    hashes = [checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}) for engine in engines]
    assert hashes == alone
    assert torch.rand(()) == expected


def test_a_state_may_be_loaded_inside_a_run() -> None:
    config = config_of("dropout")
    whole = trained(mlorun.build(config))[0]

    class Rewind(mlorun.Callback):
        state: Any = None

        def on_step_end(self, engine: Engine) -> None:
            if engine.step_count == 3 and self.state is None:
                self.state = copy.deepcopy(engine.state_dict())
            elif engine.step_count == 7 and self.state:
                engine.load_state_dict(self.state)
                self.state = {}

    engine = mlorun.build(config)
    engine.run(callbacks=[Rewind()])
    assert checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}) == whole


def test_an_action_that_another_iterator_has_taken_is_not_executed_twice() -> None:
    config = config_of("dropout")
    whole = trained(mlorun.build(config))[0]
    engine = mlorun.build(config)
    for count, _ in enumerate(engine.actions()):
        if count == 3:
            next(engine.steps())  # finishes the global step at hand
    assert checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}) == whole


def test_random_numbers_between_two_steps_are_the_callers() -> None:
    config = config_of("dropout")
    whole = trained(mlorun.build(config))[0]
    engine = mlorun.build(config)
    for _ in engine.steps():
        torch.rand(3)
    assert checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}) == whole


def test_building_and_running_leave_the_callers_random_numbers_alone() -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    expected = (random.random(), np.random.rand(), torch.rand(()).item())
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    trained(mlorun.build(config_of("dropout")))
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


def test_every_tensor_that_a_step_changes_is_listed_by_name() -> None:
    engine = mlorun.build(config_of("cg"))
    tensors = live_tensors(engine.state_dict())
    weight = engine.problems["classifier"].theta[0]
    listed = tensors["problems/classifier/module/1.weight"]
    assert listed.data_ptr() == weight.data_ptr()
    for _ in engine.steps():
        pass
    now = live_tensors(engine.state_dict())
    assert "problems/classifier/update/optimizer/state/0/momentum_buffer" in now
    assert now["problems/classifier/module/1.weight"].data_ptr() == weight.data_ptr()
    plain = plain_data(engine.state_dict())
    assert plain["step"] == STEPS
    assert not live_tensors(plain)


def test_the_gradient_of_the_next_step_is_told_without_taking_it() -> None:
    config = config_of("soba")
    engine = mlorun.build(config)
    taken: list[tuple[Tensor, ...]] = []
    upper = engine.problems["reweight"]
    upper.grad_callback = lambda: taken.append(tuple(p.grad.clone() for p in upper.theta if p.grad is not None))
    told = []
    for action in engine.actions():
        if action.problem == "reweight":
            told.append(engine.gradient("reweight"))
    assert len(told) == len(taken) > 1
    assert equal(told, taken)
    assert trained(mlorun.build(config))[0] == checkpoint.params_sha256(
        {name: p.module for name, p in engine.problems.items()}
    )


class Noisy(Problem):
    """Draws from every generator, keeps a number of its own, and moves buffers."""

    def __init__(self, **problem: Any) -> None:
        super().__init__(**problem)
        self.count = 0

    def training_step(self, batch: Any) -> Tensor:
        x, y = batch
        noise = random.gauss(0, 0.1) + np.random.randn() * 0.1 + torch.randn(()) * 0.1
        losses = F.cross_entropy(self(x + noise), y, reduction="none")
        return (self.up.module.weight.exp().squeeze() * losses).mean() * (1 + 0.01 * self.count)

    def param_callback(self) -> None:
        self.count += 1

    def state_dict(self) -> Mapping[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


class Up(Problem):
    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.low(batch[0]), batch[1]) + self.module.weight.square().sum()


class Rows(torch.utils.data.Dataset[Any]):
    """Samples with a random transform."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(20, 3, generator=draw), torch.randint(2, (20,), generator=draw)

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> Any:
        return self.x[index] + 0.1 * torch.randn(3), self.y[index]


def noisy_engine() -> Engine:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))

    def data(name: str) -> Any:
        return stream(Rows(), batch_size=4, seed=0, name=name, device=torch.device("cpu"))

    low = Noisy(
        name="low", module=body, stream=data("low"),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1, momentum=0.9),
        hypergradient=Implicit(ConjugateGradient(3, 1e-2, 0.0, True), ForwardOverReverse(), "before", "full"),
        update_schedule=UpdateSchedule(unroll_steps=2),
    )  # fmt: skip
    up = Up(
        name="up", module=nn.Linear(1, 1, bias=False), optimizer=lambda theta: torch.optim.Adam(theta, lr=0.1),
        stream=data("up"),
    )  # fmt: skip
    return Engine([up, low], {"u2l": {"up": ["low"]}}, train_iters=9, log_every=2, seed=7)


@pytest.mark.parametrize("stop", [1, 3, 6])
def test_every_generator_loader_buffer_and_a_state_of_the_recipe_come_back(stop: int, tmp_path: Path) -> None:
    whole = trained(noisy_engine())
    first = noisy_engine()
    first.probe()
    events: list[Event] = []
    for step in first.steps():
        if step % 2 == 0:
            first.report(events.append)
        if step == stop:
            path = checkpoint.save(tmp_path, first.step_count, first.state_dict())
            break
    second = noisy_engine()
    second.load_state_dict(checkpoint.load(path))
    sha, later = trained(second)
    assert (sha, [*map(repr, events), *later]) == whole
