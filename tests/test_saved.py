"""A run folder comes back as objects; a config runs again; metrics of whole splits, artifacts, and who shows them."""

from __future__ import annotations

import csv
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlorun
from mlorun.cli import main
from mlorun.errors import ConfigError, RunError
from mlorun.run import artifacts, checkpoint

pytestmark = pytest.mark.usefixtures("empty_folder")
SHORT = [
    "experiment=mwn_digits",
    "engine.train_iters=6",
    "engine.log_every=2",
    "engine.valid_every=3",
    "threads=1",
    "device=cpu",
]

RECIPE = """
import torch
from mlorun.recipes.reweighting import WeightedClassifier

STEPS = []


class Counted(WeightedClassifier):
    def training_step(self, batch):
        STEPS.append(self.step)
        return super().training_step(batch)

    def evaluation_step(self, batch):
        inputs, labels = batch
        return {**super().evaluation_step(batch), "outputs": (self(inputs).argmax(1), labels)}

    def evaluation_end(self, outputs):
        guesses, labels = outputs
        counts = torch.bincount(10 * labels + guesses, minlength=100).reshape(10, 10)
        self.save_artifact("confusion", counts / counts.max())
        rows = [{"label": label, "right": int(counts[label, label])} for label in range(10)]
        self.save_artifact("tables/counts", rows)
        return {"right": (guesses == labels).sum(), "samples": torch.tensor(len(labels))}

    def on_run_end(self):
        self.save_artifact("weights", next(iter(self.module.parameters())))
        self.save_artifact("note", "done")


class Shows:
    def __init__(self):
        self.shown = []

    def start(self, facts):
        self.file = facts.folder / "shown.txt"

    def event(self, event):
        pass

    def artifact(self, step, name, value, path):
        with self.file.open("a") as file:
            file.write(f"{step} {name} {path.name}\\n")

    def end(self, result):
        pass


class Breaks(Shows):
    def artifact(self, step, name, value, path):
        raise ValueError("no screen")
"""


def recipe() -> list[str]:
    Path("recipes").mkdir()
    Path("recipes/counted.py").write_text(RECIPE)
    return [*SHORT, "problems.classifier._target_=recipes.counted.Counted"]


def folder() -> Path:
    return Path("runs/mwn_digits/latest")


def test_a_run_comes_back_with_its_config_its_weights_and_its_metrics() -> None:
    result = mlorun.train(mlorun.compose(" ".join([*SHORT, "seed=7"])))
    run = mlorun.load("mwn_digits")
    assert (run.step, run.config.seed) == (6, 7)
    assert checkpoint.params_sha256({name: p.module for name, p in run.problems.items()}) == result.params_sha256
    assert run.engine.evaluate() == {name: v for name, v in result.metrics.items() if name.startswith("test/")}
    rows = [row for row in run.metrics if row["source"] == "classifier" and row["kind"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert rows[-1]["loss"] == result.metrics["classifier/loss"]
    assert run.result["params_sha256"] == result.params_sha256
    assert mlorun.load(run.folder).step == mlorun.load("latest").step == 6


def test_the_best_weights_come_back_where_a_metric_kept_them() -> None:
    best = ["checkpoint.metric=reweight/loss", "checkpoint.mode=max", "checkpoint.every=1"]
    mlorun.train(mlorun.compose([*SHORT, "engine.log_every=1", *best]))
    assert mlorun.load("latest", best=True).step < mlorun.load("latest").step


@pytest.mark.parametrize(("word", "best"), [("nothing", False), ("mwn_digits", True)])
def test_a_run_that_is_not_there_is_a_config_error(word: str, best: bool) -> None:
    if best:
        mlorun.train(mlorun.compose([*SHORT, "engine.train_iters=1"]))
    with pytest.raises(ConfigError):
        mlorun.load(word, best=best)


def test_a_config_runs_again_to_the_same_bits_and_with_other_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SHORT) == 0
    first = json.loads((folder() / "result.json").read_text())
    assert main(["rerun", "latest"]) == 0
    again = json.loads((folder() / "result.json").read_text())
    assert again["params_sha256"] == first["params_sha256"]
    assert main(["rerun", "mwn_digits", "seed=5", "classifier.optimizer.lr=0.01"]) == 0
    other = mlorun.load("latest").config
    assert (other.seed, other.problems.classifier.optimizer.lr) == (5, 0.01)
    assert len(list(Path("runs/mwn_digits").iterdir())) == 4
    capsys.readouterr()
    for words in (
        ["rerun"],
        ["rerun", "latest", "seedd=1"],
        ["rerun", "latest", "seed=1,2"],
        ["rerun", "latest", "seed=x"],
    ):
        assert main(words) == 2, words
        assert "traceback" not in capsys.readouterr().err
    assert len(list(Path("runs/mwn_digits").iterdir())) == 4


def test_metrics_of_a_whole_split_and_artifacts(capsys: pytest.CaptureFixture[str]) -> None:
    words = recipe()
    Path("configs/logger").mkdir(parents=True)
    Path("configs/logger/shows.yaml").write_text(
        "shows: {_target_: recipes.counted.Shows}\nbreaks: {_target_: recipes.counted.Breaks}\n"
    )
    assert main([*words, "logger=shows", "classifier.evaluation_batch_size=64"]) == 0
    result = json.loads((folder() / "result.json").read_text())["metrics"]
    assert result["test/samples"] == 500
    assert result["test/right"] == pytest.approx(5 * result["test/accuracy"])
    made = {str(path.relative_to(folder() / "artifacts")) for path in (folder() / "artifacts").rglob("*.*")}
    assert made == {
        "confusion-00000003.png", "confusion-00000006.png", "tables/counts-00000003.csv", "tables/counts-00000006.csv",
        "weights-00000006.png", "note-00000006.txt",
    }  # fmt: skip
    with (folder() / "artifacts/tables/counts-00000006.csv").open() as file:
        assert sum(int(row["right"]) for row in csv.DictReader(file)) == result["test/right"]
    shown = (folder() / "shown.txt").read_text().splitlines()
    assert "3 confusion confusion-00000003.png" in shown
    assert len(shown) == 6
    assert "Breaks raised ValueError: no screen. It is left out" in (folder() / "log.txt").read_text()


@pytest.mark.parametrize("estimator", ["t1t2", "unrolled", "evolution"])
def test_a_loss_that_is_evaluated_again_sees_the_step_of_its_first_time(estimator: str) -> None:
    words = [
        *recipe(),
        f"classifier.hypergradient={estimator}",
        "classifier.unroll_steps=2",
        "classifier.evaluate_on=[]",
    ]
    engine = mlorun.build(mlorun.compose(words))
    engine.probe()
    counted = import_module("recipes.counted")
    counted.STEPS.clear()
    seen = []
    for step in engine.steps():
        seen.append((step, set(counted.STEPS), len(counted.STEPS)))
        assert engine.problems["classifier"].step == step
        counted.STEPS.clear()
    assert any(count > 1 for _, _, count in seen), "nothing was evaluated again"
    for step, steps, _ in seen:
        assert steps <= {step - 1, step - 2}
    # the second step of an inner loop, and what is replayed of it
    assert all(step - 1 in steps for step, steps, _ in seen)


@pytest.mark.parametrize(
    ("value", "suffix"),
    [
        (torch.rand(4, 5), "png"),
        (torch.rand(3, 4, 5), "png"),
        (torch.rand(7, 1, 8, 8), "png"),
        (torch.rand(7), "npy"),
        (np.arange(24.0).reshape(2, 3, 4), "npy"),
        ("text", "txt"),
        ([{"a": 1, "b": 2.5}], "csv"),
    ],
)
def test_an_artifact_is_written_as_what_it_is(value: Any, suffix: str, tmp_path: Path) -> None:
    path = artifacts.write(tmp_path, "folder/name", value, 12)
    assert path == tmp_path / f"folder/name-00000012.{suffix}"
    assert path.stat().st_size > 0
    if suffix == "npy":
        assert np.array_equal(np.load(path), np.asarray(value))


def test_a_figure_is_a_picture(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib.figure")
    figure = matplotlib.Figure()
    figure.add_subplot().plot([1, 2, 3])
    assert artifacts.write(tmp_path, "curve", figure, 0).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["", "../out", "a/../../b", "/etc/x", "a b", "a\x00b", "a/"])
def test_an_artifact_never_leaves_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="name"):
        artifacts.write(tmp_path, name, "text", 0)
    with pytest.raises(RunError, match="cannot be written"):
        artifacts.write(tmp_path, "name", object(), 0)
    assert not list(tmp_path.rglob("*.*"))


def test_tensorboard_gets_curves_and_pictures_and_the_others_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")
    assert main([*recipe(), "logger=tensorboard"]) == 0
    reader = import_module("tensorboard.backend.event_processing.event_accumulator")
    read = reader.EventAccumulator(str(folder() / "tensorboard")).Reload()
    assert [point.step for point in read.Scalars("classifier/loss")] == [2, 4, 6]
    assert "eval/classifier/test/accuracy" in read.Tags()["scalars"]
    assert "confusion" in read.Tags()["images"]
    assert (folder() / "metrics.jsonl").stat().st_size > 0
    assert "test/accuracy" in capsys.readouterr().out


def test_a_quiet_run_says_only_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "logger=quiet", "tags=[a, b]", "notes=mine"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("finished: runs/mwn_digits/")
    assert mlorun.load("latest").config.tags == ["a", "b"]


def test_a_metric_of_an_earlier_step_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    import os
    import signal

    class Ends(mlorun.Callback):
        def on_step_end(self, engine: mlorun.Engine) -> None:
            if engine.step_count == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    result = mlorun.train(mlorun.compose(SHORT), callbacks=[Ends()])
    assert (result.status, result.steps) == ("preempted", 5)
    assert result.metric_steps["test/accuracy"] == 3
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-3:] for line in lines if line[:1] == ["test/accuracy"]] == [["at", "step", "3"]]
