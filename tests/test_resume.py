"""Runs that were ended early go on to the same bits, and say what is not as it was."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import mlorun
from mlorun.cli import main
from mlorun.errors import ConfigError, MlorunError
from mlorun.run import checkpoint
from mlorun.run import folder as folder_module
from mlorun.run.events import Result
from mlorun.run.folder import RunFolder
from tests.sweeps import tiny

pytestmark = pytest.mark.usefixtures("empty_folder")
SHORT = [
    "experiment=mwn_digits", "engine.train_iters=12", "engine.log_every=4", "engine.valid_every=5", "threads=1",
    "logger=jsonl", "checkpoint.seconds=0", "checkpoint.every=3",
]  # fmt: skip


class At(mlorun.Callback):
    """Does something after one step."""

    def __init__(self, step: int, do: Any) -> None:
        self.step, self.do = step, do

    def on_step_end(self, engine: mlorun.Engine) -> None:
        if engine.step_count == self.step:
            self.do(engine)


def run(folder: str, more: Sequence[str] = (), *callbacks: mlorun.Callback) -> Result:
    return mlorun.train(mlorun.compose([*SHORT, *more]), SHORT, Path(folder), callbacks)


def interrupted(folder: str, step: int, more: Sequence[str] = (), number: int = signal.SIGTERM) -> Result:
    result = run(folder, more, At(step, lambda engine: os.kill(os.getpid(), number)))
    # a callback that was given from Python is not there when the run is resumed from the shell
    for path in checkpoint.saved(Path(folder) / "checkpoints"):
        content = checkpoint.load(path)
        content["callbacks"].pop()
        path.unlink()
        checkpoint.save(path.parent, checkpoint.step_of(path), content)
    return result


def outcome(folder: str) -> tuple[Any, ...]:
    result = json.loads((Path(folder) / "result.json").read_text())
    return result["params_sha256"], result["metrics"], (Path(folder) / "metrics.jsonl").read_bytes()


def log(folder: str) -> str:
    return (Path(folder) / "log.txt").read_text()


def facts(folder: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text())
    return read


@pytest.mark.parametrize("step", [1, 4, 5, 11, 12])
@pytest.mark.parametrize("more", [[], ["callback=early_stopping", "callback.early_stopping.metric=reweight/loss",
                                       "callback.early_stopping.patience=1", "callback.early_stopping.min_delta=9"]],
                         ids=["", "early stopping"])  # fmt: skip
def test_a_preempted_run_goes_on_to_the_same_bits(step: int, more: list[str]) -> None:
    run("whole", more)
    result = interrupted("cut", step, more)
    if more and step > 8:
        assert result.status == "finished", "it had stopped early by then"
        return
    assert (result.status, result.exit_code, result.steps) == ("preempted", 75, step)
    assert facts("cut")["status"] == "preempted"
    assert main(["resume", "cut"]) == 0
    assert outcome("cut") == outcome("whole")
    assert [attempt["from_step"] for attempt in facts("cut")["attempts"]] == [0, step]
    assert facts("cut")["bitwise"] is True


def test_ctrl_c_exits_with_130_and_names_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    result = interrupted("cut", 5, ["logger=console"], signal.SIGINT)
    assert (result.status, result.exit_code) == ("interrupted", 130)
    assert f"stopped at step 5; go on with: mlorun resume {Path('cut').absolute()}" in capsys.readouterr().out.replace(
        "\n", ""
    )


def test_sigusr1_saves_and_the_run_goes_on() -> None:
    at = At(5, lambda engine: os.kill(os.getpid(), signal.SIGUSR1))
    result = run("a", ["checkpoint.every=0", "checkpoint.keep=9"], at)
    assert result.status == "finished"
    assert [checkpoint.step_of(path) for path in checkpoint.saved(Path("a/checkpoints"))] == [12, 5]


def test_a_finished_run_prints_its_result_and_more_steps_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    run("a")
    before = (Path("a/metrics.jsonl")).read_bytes()
    assert main(["resume", "a"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert main(["resume", "a", "engine.train_iters=16"]) == 0
    assert json.loads(Path("a/result.json").read_text())["steps"] == 16
    assert Path("a/metrics.jsonl").read_bytes().startswith(before)
    run("longer", ["engine.train_iters=16"])
    assert outcome("a")[0] == outcome("longer")[0]


def test_what_would_change_the_past_is_refused_with_the_difference(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted("a", 5)
    assert main(["resume", "a", "classifier.optimizer.lr=3", "seed=2"]) == 2
    screen = capsys.readouterr().err
    assert "problems.classifier.optimizer.lr=0.1, wanted 3" in screen
    assert "init_from=" in screen
    assert main(["resume", "a", "engine.train_iters=3"]) == 2
    assert "more steps than that" in capsys.readouterr().err
    assert facts("a")["status"] == "preempted"


def test_the_newest_damaged_checkpoint_is_named_and_the_one_before_is_used() -> None:
    run("whole")
    interrupted("a", 8)
    newest, older = checkpoint.saved(Path("a/checkpoints"))[:2]
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 4
    newest.write_bytes(data)
    assert main(["resume", "a"]) == 0
    assert f"the checkpoint is damaged: {newest.absolute()}" in log("a")
    assert facts("a")["attempts"][1]["from_step"] == checkpoint.step_of(older) == 6
    assert outcome("a") == outcome("whole")


def test_a_checkpoint_that_metrics_are_missing_for_is_passed_over() -> None:
    run("whole")
    interrupted("a", 8)
    newest, older = checkpoint.saved(Path("a/checkpoints"))
    length = checkpoint.load(older)["metrics_bytes"]
    assert length < checkpoint.load(newest)["metrics_bytes"]
    os.truncate("a/metrics.jsonl", length)
    assert main(["resume", "a"]) == 0
    assert facts("a")["attempts"][1]["from_step"] == checkpoint.step_of(older)
    assert outcome("a") == outcome("whole")


def test_metrics_are_on_the_disk_before_the_checkpoint_that_counts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    save = checkpoint.save

    def saved(*given: Any) -> Path:
        done.append("checkpoint")
        return save(*given)

    monkeypatch.setattr("mlorun.callbacks.checkpoints.sync", lambda path: done.append(path.name))
    monkeypatch.setattr(checkpoint, "save", saved)
    run("a")
    assert done[-4:] == ["metrics.jsonl", "checkpoint"] * 2


def test_without_any_good_checkpoint_nothing_starts_again_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted("a", 8)
    for path in checkpoint.saved(Path("a/checkpoints")):
        path.write_bytes(b"")
    metrics = Path("a/metrics.jsonl").read_bytes()
    assert main(["resume", "a"]) == 1
    assert "no checkpoint of this run can be used" in capsys.readouterr().err
    assert Path("a/metrics.jsonl").read_bytes() == metrics


def test_a_run_that_died_before_its_first_checkpoint_starts_from_step_0() -> None:
    run("whole")

    def die(engine: mlorun.Engine) -> None:
        raise MemoryError

    assert run("a", ["checkpoint.every=0"], At(5, die)).exit_code == 5
    assert main(["resume", "a", "checkpoint.every=3"]) == 0
    assert "before its first checkpoint" in log("a")
    assert outcome("a") == outcome("whole")


def test_what_is_not_as_before_is_named_and_recorded() -> None:
    interrupted("a", 5)
    record = facts("a")
    record["origin"]["versions"]["torch"] = "2.0.0"
    record["origin"]["sources"]["mlorun.recipes.reweighting"] = "0"
    record["origin"]["data"]["classifier trains"] = "0"
    Path("a/run.json").write_text(json.dumps(record))
    assert main(["resume", "a"]) == 0
    for key in ("versions.torch: 2.0.0, now", "sources.mlorun.recipes.reweighting", "data.classifier trains"):
        assert f"not as before: {key}" in log("a")
    assert facts("a")["bitwise"] is False
    assert len(facts("a")["attempts"][1]["drift"]) == 3


def test_the_console_says_what_a_resumed_run_begins_with(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted("a", 8, ["logger=console"])
    record = facts("a")
    record["origin"]["versions"]["torch"] = "2.0.0"
    Path("a/run.json").write_text(json.dumps(record))
    newest = checkpoint.saved(Path("a/checkpoints"))[0]
    newest.write_bytes(newest.read_bytes()[:-1])
    capsys.readouterr()
    assert main(["resume", "a"]) == 0
    screen = capsys.readouterr().out
    for text in ("the checkpoint is damaged", "goes on from step 6", "not as before: versions.torch: 2.0.0, now"):
        assert screen.count(text) == log("a").count(text) == 1


def test_a_config_that_was_edited_by_hand_is_named_and_recorded() -> None:
    interrupted("a", 5)
    assert main(["resume", "a", "engine.train_iters=9"]) == 0  # that is no edit
    assert facts("a")["bitwise"] is True
    config = Path("a/config.yaml")
    config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.2"))
    assert main(["resume", "a", "engine.train_iters=12"]) == 0
    assert "not as before: config.yaml: edited since it was written" in log("a")
    assert facts("a")["bitwise"] is False
    assert main(["resume", "a", "engine.train_iters=15"]) == 0
    assert log("a").count("edited since") == 1


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_resumption_that_dies_while_it_begins_has_edited_nothing(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    def dying(write: Any) -> Any:
        def counted(*given: Any) -> None:
            writes.append(given[0].name)
            if len(writes) == at:
                raise Died
            write(*given)

        return counted

    writes: list[str] = []
    interrupted("a", 5)
    with monkeypatch.context() as patched:
        for name in ("write_bytes", "write_json"):
            patched.setattr(f"mlorun.run.folder.{name}", dying(getattr(folder_module, name)))
        with pytest.raises(Died):
            main(["resume", "a", "engine.train_iters=9"])
    assert writes == ["run.json", "config.yaml", "run.json"][:at]
    assert main(["resume", "a"]) == 0
    assert facts("a")["bitwise"] is True
    assert "edited" not in log("a")


def test_a_saved_config_trusts_no_package_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    interrupted("a", 5)
    config = Path("a/config.yaml")
    config.write_text(config.read_text().replace("trusted_packages: []", "trusted_packages: [collections]"))
    for command in (["resume", "a"], ["rerun", "a"]):
        assert main(command) == 2
        assert "a file trusts collections, and only a person may" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="a file trusts collections"):
        mlorun.load("a")
    assert mlorun.load("a", trust=("collections",)).step == 5
    assert main(["resume", "a", "trusted_packages=[collections]"]) == 0


def test_half_a_result_is_none_and_the_run_gets_its_own_again() -> None:
    run("a")
    expected = outcome("a")
    for damaged in ("", '{"status": "finished"', "[]", '{"status": "finished"}'):
        Path("a/result.json").write_text(damaged)
        assert main(["resume", "a"]) == 0
        assert outcome("a") == expected


@pytest.mark.parametrize("damaged", [b"", b'{"status": "fin', b"[]", b"{}", b"\xff\xfe", b'{"status": 3}'])
def test_a_damaged_record_is_one_screen_and_hides_no_other_run(
    damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("1", "2"):
        folder = RunFolder.at(f"runs/x/{name}")
        folder.begin(name="x", config="", argv=[], overrides=[], origin={}, precision="fp32")
    Path("runs/x/2/run.json").write_bytes(damaged)
    for command in (["resume", "latest"], ["rerun", "latest"]):
        assert main(command) == 2
        assert "the record of the run cannot be read" in capsys.readouterr().err
    assert main(["ls", "runs"]) == 0
    shown = capsys.readouterr().out
    assert "unreadable" in shown
    assert "died" in shown


def test_a_run_that_stopped_early_is_finished(capsys: pytest.CaptureFixture[str]) -> None:
    run("a", ["engine.log_every=1", "callback=early_stopping", "callback.early_stopping.metric=reweight/loss",
              "callback.early_stopping.patience=2", "callback.early_stopping.min_delta=100"])  # fmt: skip
    before = outcome("a")
    assert facts("a")["steps"] == 3
    capsys.readouterr()
    assert main(["resume", "a"]) == 0
    assert "finished already" in capsys.readouterr().out
    assert outcome("a") == before


@pytest.mark.parametrize("forge", [{"format": 1}, {"engine": {}}, {"engine": {"problems": 3}}, {"metrics_bytes": None}])
def test_a_checkpoint_with_the_right_hash_and_other_content_is_one_screen(
    forge: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted("a", 5)
    for path in checkpoint.saved(Path("a/checkpoints")):
        content = {**checkpoint.load(path), **forge}
        path.unlink()
        checkpoint.save(
            path.parent, checkpoint.step_of(path), {key: value for key, value in content.items() if value is not None}
        )
    assert main(["resume", "a"]) == 1
    assert "checkpoint" in capsys.readouterr().err.splitlines()[0]
    with pytest.raises(MlorunError):
        mlorun.load("a")
    if "engine" in forge:
        assert main([*SHORT, "init_from=a"]) == 2
        assert "holds no weights of problems" in capsys.readouterr().err


def test_a_run_that_is_resumed_elsewhere_names_the_folder_of_its_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path)
    assert main(["experiment=tiny"]) == 0
    (run_folder,) = (tmp_path / "runs" / "tiny").glob("2*")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name in [name for name in sys.modules if name.split(".")[0] == "recipes"]:
        monkeypatch.delitem(sys.modules, name)
    # folders of other tests are there too, with a recipe of the same name
    elsewhere = [entry for entry in sys.path if entry and not Path(entry, "recipes", "ending.py").exists()]
    monkeypatch.setattr(sys, "path", elsewhere)
    for command in (["resume", str(run_folder), "engine.train_iters=9"], ["rerun", str(run_folder)]):
        assert main(command) == 2
        assert f"the run began in {tmp_path}: start this command there" in capsys.readouterr().err


def test_a_run_in_use_exits_with_6(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    run("a", [], At(5, lambda engine: codes.append(main(["resume", "a"]))))
    assert codes == [6]
    assert f"process {os.getpid()}" in capsys.readouterr().err


def test_a_run_is_named_by_folder_name_or_latest(capsys: pytest.CaptureFixture[str]) -> None:
    mlorun.train(mlorun.compose([*SHORT, "name=first"]))
    newest = mlorun.train(mlorun.compose([*SHORT, "name=second"]))
    assert newest.status == "finished"
    for word, name in (("latest", "second"), ("first", "first"), ("runs/first/latest", "first")):
        assert main(["resume", word]) == 0
        assert f"runs/{name}/" in capsys.readouterr().out
    assert main(["resume", "frist"]) == 2
    assert "did you mean first?" in capsys.readouterr().err
    assert main(["resume"]) == 2


def test_init_from_takes_the_weights_that_fit_and_says_which() -> None:
    run("a")
    mlorun.train(
        mlorun.compose([*SHORT, "engine.train_iters=0", "init_from=a", "reweight.module.hidden=7"]), (), Path("b")
    )
    assert "init_from: 4 of 4 tensors of classifier match" in log("b")
    assert "of reweight match; left as they are: " in log("b")
    one, two = (checkpoint.load(Path(f"{x}/checkpoints/final.pt"))["engine"]["problems"] for x in "ab")
    assert all(
        (one["classifier"]["module"][key] == two["classifier"]["module"][key]).all()
        for key in one["classifier"]["module"]
    )
    assert main([*SHORT, "init_from=nowhere"]) == 2


def test_the_best_checkpoint_stays_and_is_evaluated_beside_the_last() -> None:
    best = ["checkpoint.metric=reweight/loss", "checkpoint.mode=max", "checkpoint.keep=1", "engine.log_every=2"]
    run("whole", best)
    metrics = outcome("whole")[1]
    assert {"test/accuracy", "best/test/accuracy"} <= set(metrics)
    lines = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    losses = {
        one["step"]: one["metrics"]["loss"] for one in lines if one["source"] == "reweight" and one["kind"] == "train"
    }
    step = max(losses, key=lambda at: (losses[at], -at))
    assert step < 12
    assert [checkpoint.step_of(path) for path in checkpoint.saved(Path("whole/checkpoints"))] == [12, step]
    assert checkpoint.load(Path("whole/checkpoints/best.pt"))["engine"]["step"] == step
    assert f"at step {step}" in log("whole")
    run("plain", ["engine.log_every=2"])
    assert outcome("whole")[0] == outcome("plain")[0]  # what the run ends with is its last state
    interrupted("a", 7, best)
    assert main(["resume", "a"]) == 0
    assert outcome("a") == outcome("whole")


def test_the_best_by_a_test_split_warns_and_an_unknown_metric_is_refused() -> None:
    run("a", ["checkpoint.metric=test/loss"])
    assert "test/loss is of the test split" in log("a")
    with pytest.raises(ConfigError, match="there is no metric 'tset/loss' to keep the best checkpoint by"):
        run("b", ["checkpoint.metric=tset/loss"])
    assert not Path("b").exists()


def test_sys_exit_in_a_recipe_is_a_failure() -> None:
    result = run("a", [], At(5, lambda engine: exit(0)))
    assert (result.status, result.exit_code) == ("failed", 1)
    assert "sys.exit(0)" in str(result.error)


def test_a_recipe_that_changes_the_folder_loses_nothing(tmp_path: Path) -> None:
    result = run("a", [], At(5, lambda engine: os.chdir("/")))
    os.chdir(tmp_path)
    assert result.status == "finished"
    assert outcome("a")[0] == result.params_sha256


def test_an_error_that_cannot_be_encoded_is_recorded() -> None:
    def fail(engine: mlorun.Engine) -> None:
        raise ValueError("bad \ud800 text")

    assert run("a", [], At(5, fail)).exit_code == 1
    assert "bad \ud800 text" in facts("a")["attempts"][0]["error"]


def test_the_writer_ends_with_the_run_however_that_ends() -> None:
    def fail(engine: mlorun.Engine) -> None:
        raise ValueError("in the middle")

    def twice(engine: mlorun.Engine) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    ends = {"finished": lambda engine: None, "failed": fail, "preempted": twice}
    for status, do in ends.items():
        assert run(status, [], At(7, do)).status == status
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("checkpoint")]
        assert checkpoint.step_of(checkpoint.saved(Path(status) / "checkpoints")[0]) == (
            12 if status == "finished" else 6
        )
