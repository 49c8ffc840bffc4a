"""Steps whose loss or gradient is not finite are left out, wholly, and are counted."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.core.state import on_host
from mlorun.errors import NonFiniteError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.run.checkpoint import params_sha256
from mlorun.run.events import Event

OPTIMIZERS = {
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01),
}
HOST = [True, False]  # whether finiteness is asked, or only chosen by, as where asking would wait for the device


class Low(Problem):
    """A net with running statistics; some of its batches are broken."""

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        losses = F.cross_entropy(self(inputs), labels, reduction="none")
        return (self.up(losses.detach()[:, None]) * losses[:, None]).mean()


class Up(Problem):
    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.low(inputs), labels)


class Alone(Problem):
    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def batches(broken: set[int], skip: bool) -> Iterator[Any]:
    """Batches without end; those whose number is in `broken` hold a NaN, or are not there."""
    draw = torch.Generator().manual_seed(1)
    for number in count():
        inputs, labels = torch.randn(8, 3, generator=draw), torch.randint(2, (8,), generator=draw)
        if number in broken:
            if skip:
                continue
            inputs[2, 1] = float("nan")
        yield inputs, labels


def program(
    broken: dict[str, set[int]], optimizer: Any, *, left_out: bool = False, skips: int | None = 20, **kwargs: Any
) -> Engine:
    """left_out: without the broken batches, in place of with them."""
    torch.manual_seed(0)
    low = Low(
        name="low",
        module=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
        optimizer=optimizer,
        hypergradient=Implicit(ConjugateGradient(3, 1.0, 0.0, warm_start=True), ForwardOverReverse(), "after", "full"),
        update_schedule=UpdateSchedule(**kwargs),
    )
    up = Up(name="up", module=nn.Sequential(nn.Linear(1, 1), nn.Sigmoid()), optimizer=optimizer)
    for problem in (up, low):
        stream = batches(broken.get(problem.name, set()), left_out)
        problem.get_batch = partial(next, stream)  # type: ignore[method-assign]
    engine = Engine([up, low], {"u2l": {"up": ["low"]}}, train_iters=12, log_every=6, seed=0, skips=skips)
    engine._probed = True  # a probe would take batches
    return engine


def state(engine: Engine) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, problem in engine.problems.items()
        for key, value in [
            *problem.module.state_dict().items(),
            *((f"{i}/{k}", v) for i, s in problem.optimizer.state_dict()["state"].items() for k, v in s.items()),
        ]
    }


@pytest.mark.parametrize("at_once", HOST)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_an_upper_step_that_is_left_out_leaves_no_trace(optimizer: Any, at_once: bool) -> None:
    engine = program({"up": {3}}, optimizer)
    skips = engine.reporter.skips
    assert skips is not None
    skips.at_once = at_once
    steps = engine.actions()
    for _ in range(8):  # low and up in turn: three steps of each, and low's fourth
        action = next(steps)
    assert action.problem == "up"
    before = {name: on_host(value) for name, value in state(engine).items()}
    carries = on_host(engine.adjoint.state_dict()["carries"])
    next(steps)  # executes it
    after = state(engine)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # the optimizer's counter of steps is on the host, and cannot know where nobody asks
    assert changed <= (set() if at_once else {name for name in before if name.endswith("/step")})
    assert str(on_host(engine.adjoint.state_dict()["carries"])) == str(carries)
    assert int(skips.counts["up"]["skipped"]) == 1


@pytest.mark.parametrize("at_once", HOST)
@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_run_with_broken_batches_stays_finite_and_counts_them(at_once: bool, accumulation: int) -> None:
    engine = program({"low": {1, 4}, "up": {2}}, OPTIMIZERS["momentum"], gradient_accumulation=accumulation)
    skips = engine.reporter.skips
    assert skips is not None
    skips.at_once = at_once
    events: list[Event] = []
    metrics = engine.run(events.append)
    assert all(value.isfinite().all() for value in state(engine).values())
    # a hypergradient right after a broken lower step is not finite either
    assert skips.totals["low"] == 2
    assert skips.totals["up"] >= 1
    assert metrics["low/skipped"] == 2.0 or accumulation > 1
    assert any("2 steps left out" in text for text in engine.reporter.remarks.values())
    assert [event.metrics.get("skipped") for event in events if event.source == "low" and event.kind == "train"]


def test_without_broken_numbers_the_policy_changes_no_bit() -> None:
    shas = set()
    for skips, at_once in ((None, True), (20, True), (20, False)):
        engine = program({}, OPTIMIZERS["adamw"], skips=skips)
        if engine.reporter.skips is not None:
            engine.reporter.skips.at_once = at_once
        engine.run()
        shas.add(params_sha256({name: problem.module for name, problem in engine.problems.items()}))
    assert len(shas) == 1


def test_a_lower_problem_alone_goes_on_as_if_the_broken_batch_were_not_there() -> None:
    def trained(left_out: bool, iterations: int) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        low = Alone(name="low", module=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
                    optimizer=partial(torch.optim.AdamW, lr=0.01))  # fmt: skip
        low.get_batch = partial(next, batches({0, 5}, left_out))  # type: ignore[method-assign]
        engine = Engine([low], {}, train_iters=iterations, log_every=100, seed=0, skips=20)
        engine._probed = True
        engine.run()
        return vectors.copy((*low.module.parameters(), *low.module.buffers()))

    pairs = zip(trained(False, 12), trained(True, 10), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_too_many_in_a_row_end_the_run_and_say_so() -> None:
    engine = program({"low": set(range(3, 99))}, OPTIMIZERS["momentum"], skips=4)
    with pytest.raises(NonFiniteError, match="9 steps of low in a row") as caught:
        engine.run()
    assert caught.value.seen == "nonfinite.skips=4"
    assert engine.step_count == 12
    assert all(value.isfinite().all() for value in state(engine).values())


def test_counts_of_a_saved_state_go_on() -> None:
    engine = program({"low": {1, 7}}, OPTIMIZERS["momentum"])
    for step in engine.steps():
        if step == 3:
            break
    other = program({}, OPTIMIZERS["momentum"])
    other.load_state_dict(engine.state_dict())
    mine, its = other.reporter.skips, engine.reporter.skips
    assert mine is not None and its is not None
    assert {name: {k: int(v) for k, v in values.items()} for name, values in mine.counts.items()} == {
        name: {k: int(v) for k, v in values.items()} for name, values in its.counts.items()
    }
    assert int(mine.counts["low"]["skipped"]) == 1
