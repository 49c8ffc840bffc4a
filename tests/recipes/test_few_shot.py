"""maml_sinusoid: weights from which one step of gradient descent goes far."""

from __future__ import annotations

import pytest
import torch

import mlorun
from mlorun.core.engine import Engine

pytestmark = pytest.mark.usefixtures("empty_folder")


def engine(*overrides: str) -> Engine:
    return mlorun.build(mlorun.compose(["experiment=maml_sinusoid", "engine.valid_every=0", *overrides]))


def test_adaptation_helps_on_new_tasks_and_ever_more_with_training() -> None:
    untrained = engine("engine.train_iters=4").run()
    trained = engine("engine.train_iters=4000").run()
    assert trained["test/error_after"] < 0.8 * trained["test/error_before"]
    assert trained["test/error_after"] < 0.75 * untrained["test/error_after"]


def test_support_and_query_of_an_inner_loop_are_of_one_task_and_the_next_loop_has_another() -> None:
    program = engine("engine.train_iters=3", "learner.unroll_steps=1", "data.train_tasks=50")
    tasks = []
    meta = program.problems["meta"]
    take = meta.get_batch

    def watched() -> object:
        query = take()
        tasks.append((program.problems["learner"].task(), query))
        return query

    program.probe()
    meta.get_batch = watched  # type: ignore[method-assign]
    program.run()
    assert len(tasks) == 3
    assert all(query is task["query"] for task, query in tasks)
    assert not torch.equal(tasks[0][0]["support"][0], tasks[1][0]["support"][0])


def test_every_inner_loop_starts_from_the_meta_weights() -> None:
    program = engine("engine.train_iters=3")
    learner, meta = program.problems["learner"], program.problems["meta"]
    same: list[bool] = []
    learner.on_inner_loop_start = lambda: same.append(  # type: ignore[method-assign]
        all(torch.equal(a, b) for a, b in zip(learner.theta, meta.theta, strict=True))
    )
    program.run()
    assert same == [True] * 3


def test_the_evaluation_adapts_as_training_does() -> None:
    program = engine("engine.train_iters=3", "learner.unroll_steps=3", "data.test_tasks=1", "data.train_tasks=1")
    learner, meta = program.problems["learner"], program.problems["meta"]
    program.probe()
    learner.task()
    for action in program.actions():  # up to the step of the upper problem
        if action.problem == "meta":
            break
    task = learner.task()
    by_hand = float(meta.training_step(task["query"]).detach())
    evaluated = meta.evaluation_step(task)["error_after"]
    assert float(evaluated.detach()) == pytest.approx(by_hand, rel=1e-5)  # type: ignore[union-attr]
