"""Early stopping: when it ends a run, with which reason, and that it goes on after a resume as if there was none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mlorun
from mlorun.callbacks.early_stopping import EarlyStopping
from mlorun.cli import main
from mlorun.core.engine import Engine
from mlorun.errors import ConfigError
from tests.core.programs import single

pytestmark = pytest.mark.usefixtures("empty_folder")


def watch(values: list[float], mode: Any = "min", patience: int = 2, min_delta: float = 0.0) -> int | None:
    """How many values are looked at before the run is ended; None where it goes on."""
    engine = single(train_iters=100)
    callback = EarlyStopping("test/loss", mode, patience, min_delta)
    for count, value in enumerate(values, start=1):
        callback.on_evaluation(engine, {"test/loss": value, "test/accuracy": 1.0})
        if engine.stopped:
            assert (engine.stop_reason or "").startswith("early stopping: test/loss no better than")
            return count
    return None


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "options", "count"),
    [
        ([3.0, 2.0, 1.0, 0.5, 0.1], {}, None),
        ([3.0, 2.0, 2.5, 2.0, 1.0], {}, 4),
        ([3.0, 2.0, 2.5, 1.9, 2.0, 1.95, 1.0], {}, 6),
        ([1.0, 2.0, 3.0, 2.9, 2.8], {"mode": "max"}, 5),
        ([3.0, 2.99, 2.98, 2.0], {"min_delta": 0.1}, 3),
        ([NAN, NAN, 1.0], {}, 2),
        ([1.0, NAN, NAN, 0.5], {}, 3),
        ([1.0, 1.0, 1.0, 1.0, 1.0], {"patience": 4}, 5),
    ],
)
def test_it_ends_the_run_after_so_many_values_without_an_improvement(
    values: list[float], options: dict[str, Any], count: int | None
) -> None:
    assert watch(values, **options) == count


def test_a_run_that_it_ends_is_finished_and_says_why() -> None:
    stopping = ["callback=early_stopping", "callback.early_stopping.metric=test/loss",
                "callback.early_stopping.patience=1", "callback.early_stopping.min_delta=100"]  # fmt: skip
    run = ["experiment=mwn_digits", "engine.train_iters=50", "engine.valid_every=5", "threads=1"]
    assert main([*run, *stopping]) == 0
    folder = Path("runs/mwn_digits/latest")
    result, facts = (json.loads((folder / name).read_text()) for name in ("result.json", "run.json"))
    assert (result["status"], result["steps"]) == ("finished", 10)
    assert facts["stop_reason"].startswith("early stopping: test/loss no better than")
    assert "early stopping" in (folder / "log.txt").read_text()
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 10  # the step at which it ended is reported


@pytest.mark.parametrize(
    ("metric", "words"),
    [("tset/loss", "did you mean"), ("classifier/acuracy", "classifier/accuracy"), ("loss", "known: ")],
)
def test_a_metric_that_does_not_exist_is_refused_with_the_nearest(
    metric: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["experiment=mwn_digits", "engine.train_iters=3", "threads=1", "callback=early_stopping"]
    assert main([*run, f"callback.early_stopping.metric={metric}"]) == 2
    screen = capsys.readouterr().err
    assert f"there is no metric '{metric}'" in screen
    assert words in screen


@pytest.mark.parametrize("options", [("least", 1, 0.0), ("min", 0, 0.0), ("min", 1, -1.0)])
def test_options_out_of_bounds_are_refused(options: Any) -> None:
    with pytest.raises(ConfigError):
        EarlyStopping("test/loss", *options)


def test_it_goes_on_from_its_state() -> None:
    values = [3.0, 2.0, 2.5, 2.4]
    first, second = (EarlyStopping("test/loss", "min", 2, 0.0) for _ in range(2))
    engines = [single(train_iters=9), single(train_iters=9)]
    for value in values[:3]:
        first.on_evaluation(engines[0], {"test/loss": value})
    second.load_state_dict(first.state_dict())
    second.on_evaluation(engines[1], {"test/loss": values[3]})
    assert engines[1].stop_reason is not None
    assert not engines[0].stopped


def test_callbacks_are_called_in_their_documented_order_and_may_end_a_run() -> None:
    calls: list[str] = []

    class Spy(mlorun.Callback):
        def on_run_start(self, engine: Engine) -> None:
            calls.append("start")

        def on_step_end(self, engine: Engine) -> None:
            calls.append(f"step {engine.step_count}")
            if engine.step_count == 3:
                engine.stop("enough")

        def on_report(self, engine: Engine, metrics: Any) -> None:
            calls.append(f"report {engine.step_count} {sorted(metrics)}")

        def on_evaluation(self, engine: Engine, metrics: Any) -> None:
            calls.append(f"evaluation {engine.step_count}")

        def on_run_end(self, engine: Engine) -> None:
            calls.append(f"end, {engine.stop_reason}, interrupted: {engine.interrupted}")

    engine = single(train_iters=100, log_every=2, valid_every=2, evaluated=True)
    torch.manual_seed(0)
    metrics = engine.run(callbacks=[Spy()])
    assert calls == [
        "start", "step 1", "step 2", "report 2 ['only/loss']", "evaluation 2", "step 3", "report 3 ['only/loss']",
        "evaluation 3", "end, enough, interrupted: False",
    ]  # fmt: skip
    assert set(metrics) == {"only/loss", "test/loss"}


@pytest.mark.parametrize(
    ("override", "where"),
    [
        ("callback.early_stopping.patience=0", "callback.early_stopping.patience"),
        ("callback.early_stopping.min_delta=-1", "callback.early_stopping.min_delta"),
        ("+callback.mine={_target_:torch.nn.Identity}", "callback.mine"),
        ("+logger.mine={_target_:torch.nn.Softmax2d,_args_:[1]}", "logger.mine"),
    ],
)
def test_a_callback_or_logger_that_cannot_be_made_is_refused_before_anything_is_written(
    override: str, where: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = ["callback=early_stopping", "callback.early_stopping.metric=test/loss"]
    run = ["experiment=mwn_digits", "engine.train_iters=3", "threads=1", *stopping, override]
    for command in (["check", *run], run):
        assert main(command) == 2
        printed = capsys.readouterr()
        assert where in printed.err
        assert printed.out == ""
    assert list(empty_folder.iterdir()) == []
