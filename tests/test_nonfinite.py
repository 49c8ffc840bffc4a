"""What a run does with NaN: it stops, leaves the step out, or goes back to a checkpoint with smaller steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mlorun
from mlorun.cli import main
from mlorun.core.state import broken_tensors
from mlorun.run import checkpoint

pytestmark = pytest.mark.usefixtures("empty_folder")

RECIPE = '''
"""A parabola whose gradient descent diverges where the learning rate is above 1; and a batch that is broken."""

import torch
from mlorun import Problem


class Parabola(Problem):
    def __init__(self, broken: int = -1, **kwargs):
        super().__init__(**kwargs)
        self.broken, self.count = broken, 0

    def get_batch(self):
        self.count += 1
        return self.count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]

    def training_step(self, number):
        weight = self.module.weight
        return (weight**2).sum() * (float("nan") if number == self.broken else 1.0)
'''
EXPERIMENT = """# @package _global_
defaults:
  - /optimizer@problems.one.optimizer: sgd
  - _self_
name: parabola
engine: {train_iters: 60, log_every: 5}
problems:
  one:
    _target_: recipes.parabola.Parabola
    module: {_target_: torch.nn.Linear, in_features: 2, out_features: 1, bias: false}
    optimizer: {lr: 0.1, momentum: 0.0}
"""
# 1 - 2 lr = -21: a float32 overflows after some 30 steps
DIVERGES = ["one.optimizer.lr=11"]
REWIND = ["nonfinite.policy=rewind", "checkpoint.every=10", "checkpoint.seconds=0", "nonfinite.factor=0.25"]


@pytest.fixture(autouse=True)
def parabola(empty_folder: None) -> None:
    for name, text in (("recipes/parabola.py", RECIPE), ("configs/experiment/parabola.yaml", EXPERIMENT)):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def run(*words: str, root: str = "runs") -> tuple[int, Path]:
    code = main(["experiment=parabola", "device=cpu", "threads=1", f"run.root={root}", *words])
    return code, Path(root) / "parabola/latest"


def read(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text())
    return content


def outcome(folder: Path) -> tuple[Any, bytes]:
    return read(folder, "result.json")["params_sha256"], (folder / "metrics.jsonl").read_bytes()


def test_a_run_that_diverges_goes_back_until_its_steps_are_small_enough(capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = run(*DIVERGES, *REWIND, "engine.train_iters=100")
    assert code == 0
    result = read(folder, "result.json")
    # 11 to 2.75 still diverges, to 0.69 converges
    assert result["warnings"] == ["went back 2 times, from steps 20, 25; learning rates are now 0.0625 of the config's"]
    assert result["metrics"]["one/loss"] < 1e-6
    printed = capsys.readouterr().out
    assert "back to step" in printed
    assert "warning: went back 2 times" in printed
    assert read(folder, "run.json")["warnings"] == result["warnings"]
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "what came after the checkpoint is gone from metrics.jsonl"


@pytest.mark.parametrize("at", [13, 27, 33, 48])
def test_a_run_that_went_back_and_was_ended_goes_on_to_the_same_bits(at: int) -> None:
    whole = run(*DIVERGES, *REWIND, root="whole")[1]
    ended: list[int] = []

    class Ends(mlorun.Callback):
        def on_step_end(self, engine: mlorun.Engine) -> None:
            if engine.step_count == at and len(ended) < 1:
                ended.append(at)
                raise SystemError("the machine is gone")

    config = mlorun.compose(["experiment=parabola", "device=cpu", "threads=1", *DIVERGES, *REWIND])
    folder = Path("cut")
    mlorun.train(config, [], folder, [Ends()])
    for path in checkpoint.saved(folder / "checkpoints"):
        content = checkpoint.load(path)
        content["callbacks"].pop()
        path.unlink()
        checkpoint.save(path.parent, checkpoint.step_of(path), content)
    assert ended
    assert main(["resume", "cut"]) == 0
    assert outcome(folder) == outcome(whole)


def test_a_run_that_goes_back_too_often_stops_and_says_how_often(capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = run(*DIVERGES, *REWIND, "nonfinite.factor=0.9", "nonfinite.rewinds=3")
    assert code == 4
    assert "went back 3 times before" in capsys.readouterr().err
    for path in checkpoint.saved(folder / "checkpoints"):
        assert not broken_tensors(checkpoint.load(path))
    assert main(["resume", str(folder), "nonfinite.rewinds=9", "nonfinite.factor=0.25"]) == 0


def test_a_run_that_stopped_on_nan_may_be_resumed_with_another_policy() -> None:
    code, folder = run(*DIVERGES, "checkpoint.every=10")
    assert code == 4
    assert main(["resume", str(folder), "nonfinite.policy=rewind", "nonfinite.factor=0.05"]) == 0
    assert read(folder, "result.json")["metrics"]["one/loss"] < 1e-6


def test_a_broken_batch_is_left_out_and_the_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, folder = run("+one.broken=7", "nonfinite.policy=skip")
    assert code == 0
    assert read(folder, "result.json")["warnings"] == ["one: 1 steps left out, whose loss or gradient was not finite"]
    assert "warning: one: 1 steps left out" in capsys.readouterr().out
    whole = run("engine.train_iters=59")[1]
    final = [checkpoint.load(one / "checkpoints/final.pt")["engine"]["problems"]["one"] for one in (folder, whole)]
    assert torch.equal(final[0]["module"]["weight"], final[1]["module"]["weight"])


def test_a_broken_state_is_kept_where_it_is_asked_for_and_no_run_goes_on_from_it() -> None:
    code, folder = run("one.optimizer.lr=1e30", "nonfinite.save=true", "checkpoint.every=10")
    assert code == 4
    (kept,) = (folder / "checkpoints/nonfinite").iterdir()
    assert checkpoint.load(kept)["nonfinite"] == ["one/parameters/0"]
    assert kept.name not in {path.name for path in checkpoint.saved(folder / "checkpoints")}
    code, folder = run("one.optimizer.lr=1e30", "checkpoint.every=10")
    assert not (folder / "checkpoints/nonfinite").exists()


@pytest.mark.parametrize(
    ("words", "screen"),
    [
        (["nonfinite.policy=skp"], "did you mean skip?"),
        (["nonfinite.factor=1"], "nonfinite.factor must be less than 1"),
        (["nonfinite.factor=0"], "nonfinite.factor must be greater than 0"),
        (["nonfinite.rewinds=0"], "nonfinite.rewinds must be at least 1"),
        (["nonfinite.skip=3"], "there is no key 'skip' in nonfinite"),
    ],
)
def test_a_mistake_in_the_policy_is_one_screen(
    words: list[str], screen: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*words)[0] == 2
    assert screen in capsys.readouterr().err
