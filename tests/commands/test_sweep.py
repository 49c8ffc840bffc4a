"""Sweeps: their folders, exit codes and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mlorun import training
from mlorun.cli import main
from mlorun.commands import sweep
from mlorun.commands.summary import Job, jobs_in, tables
from mlorun.commands.sweep import RememberFolder, Sweep, following
from mlorun.run.atomic import write_json
from mlorun.run.events import Result

pytestmark = pytest.mark.usefixtures("empty_folder")
DIGITS = "experiment=mwn_digits"


def a_job(number: int, accuracy: float | None, *overrides: str) -> Job:
    status, exit_code = ("finished", 0) if accuracy is not None else ("failed", 1)
    metrics = {} if accuracy is None else {"classifier/loss": 0.5, "test/accuracy": accuracy}
    return Job(number, ("experiment=x", *overrides), status, exit_code, metrics, None)


def drawn(*jobs: Job) -> list[list[str]]:
    """The tables, each as its rows of cells."""
    console = Console(width=200)
    shown = []
    for table in tables(list(jobs)):
        with console.capture() as capture:
            console.print(table)
        lines = [line for line in capture.get().splitlines() if line.strip() and "─" not in line]
        shown.append(["  ".join(part for part in line.split("  ") if part.strip()) for line in lines])
    return shown


def test_a_row_a_job_shows_what_was_swept_and_the_metrics_of_evaluations() -> None:
    ((header, first, second),) = drawn(a_job(0, 90.0, "a.lr=0.1"), a_job(1, 80.0, "a.lr=0.2"))
    assert [text.strip() for text in header.split("  ") if text] == ["job", "a.lr", "status", "test/accuracy"]
    assert "0.1" in first and "90" in first
    assert "0.2" in second and "80" in second


def test_seeds_get_mean_and_standard_deviation_over_otherwise_equal_jobs() -> None:
    jobs = [a_job(i, 90.0 + 2 * i, f"seed={i}", "a=1") for i in range(3)] + [a_job(3, 50.0, "seed=0", "a=2")]
    _, (header, first, second) = drawn(*jobs)
    assert "mean ± std" in header
    assert "92 ± 2" in first
    assert "50" in second and "±" not in second


def test_a_failed_job_counts_in_no_mean() -> None:
    _, (_, row) = drawn(a_job(0, 90.0, "seed=0"), a_job(1, 92.0, "seed=1"), a_job(2, None, "seed=2"))
    assert "91 ± 1.4" in row


def test_without_several_seeds_there_is_one_table() -> None:
    assert len(drawn(a_job(0, 1.0, "a=1"), a_job(1, 2.0, "a=2"))) == 1
    assert len(drawn(a_job(0, None, "seed=0"), a_job(1, None, "seed=1"))) == 1


def fake_train(monkeypatch: pytest.MonkeyPatch, outcomes: dict[int, tuple[str, int] | Exception]) -> None:
    """Stand in for the training of jobs, by their seed."""

    def train(config: Any, overrides: list[str], folder: Path) -> Result:
        outcome = outcomes[config.seed]
        if isinstance(outcome, Exception):
            raise outcome
        status, exit_code = outcome
        (folder / "run.json").write_text("{}")
        result = Result(status, exit_code, 1, {"test/accuracy": 90.0 + config.seed}, "", 1.0, 1.0)  # type: ignore[arg-type]
        (folder / "result.json").write_text(json.dumps(result.as_json()))
        return result

    monkeypatch.setattr(training, "train", train)


def sweep_folder() -> Path:
    (folder,) = Path("sweeps/mwn_digits").iterdir()
    return folder


def test_a_job_that_raises_stops_no_other(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fake_train(monkeypatch, {0: ("finished", 0), 1: RuntimeError("unforeseen"), 2: ("failed", 1), 3: ("finished", 0)})
    assert main(["-m", DIGITS, "seed=0,1,2,3"]) == 3
    out, screen = capsys.readouterr()
    assert "RuntimeError: unforeseen" in screen
    assert "2 failed, 2 finished" in out
    jobs = json.loads((sweep_folder() / "sweep.json").read_text())["jobs"]
    assert [job["exit_code"] for job in jobs] == [0, 1, 1, 0]
    (log,) = (sweep_folder() / "1").glob("*.log")
    assert "Traceback" in log.read_text()


def test_ctrl_c_ends_a_sweep_with_its_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_train(monkeypatch, {0: ("finished", 0), 1: ("interrupted", 130), 2: ("finished", 0)})
    assert main(["-m", DIGITS, "seed=0,1,2"]) == 130
    assert "1 finished, 1 interrupted" in capsys.readouterr().out
    assert json.loads((sweep_folder() / "sweep.json").read_text())["exit_code"] == 130
    assert not (sweep_folder() / "2").exists()


def test_a_sweep_in_which_every_job_is_wrong_is_a_wrong_command(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert main(["-m", DIGITS, "classifier.optimizer.lr=a,b"]) == 2
    assert capsys.readouterr().err.count("wrong type") == 2
    assert list(empty_folder.iterdir()) == []


def test_a_sweep_over_experiments_is_filed_under_several_and_takes_short_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_train(monkeypatch, {0: ("finished", 0)})
    args = ["-m", "experiment=mwn_digits,mwn_mnist_baseline", "classifier.module=mlp_digits", "classifier.batch_size=7"]
    assert main(args) == 0
    (folder,) = Path("sweeps/several").iterdir()
    jobs = jobs_in(folder)
    assert [job.values["experiment"] for job in jobs] == ["mwn_digits", "mwn_mnist_baseline"]
    assert all(job.values["classifier.batch_size"] == "7" for job in jobs)


def test_hydras_own_settings_keep_working(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_train(monkeypatch, {0: ("finished", 0), 1: ("finished", 0)})
    args = [DIGITS, "seed=0,1", "hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere", "hydra/launcher=basic"]
    assert main(args) == 0
    assert len(jobs_in(Path("elsewhere"))) == 2


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_into_a_folder_that_holds_something_is_refused_and_touches_nothing(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_train(monkeypatch, {0: ("finished", 0), 1: ("finished", 0)})
    folder = empty_folder / "mine"
    for name in ("0/job.json", "0/notes.txt", "multirun.yaml", "job.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "empty").mkdir()
    before = everything(folder)
    assert main([DIGITS, "-m", "seed=0,1", "hydra.sweep.dir=mine"]) == 2
    assert "must be new or empty" in capsys.readouterr().err
    assert everything(folder) == before
    assert (folder / "empty").is_dir()


def test_a_refused_sweep_removes_what_it_made_and_nothing_that_came_meanwhile(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "mine").mkdir()
    write = write_json

    def write_and_add(path: Path, value: Any) -> None:
        write(path, value)
        (empty_folder / "mine" / "7").mkdir(exist_ok=True)
        (empty_folder / "mine" / "7" / "notes.txt").write_text("of somebody else")

    monkeypatch.setattr(sweep, "write_json", write_and_add)
    assert main([DIGITS, "-m", "seed=0,1", "hydra.sweep.dir=mine", "classifier.batch_size=-1"]) == 2
    assert everything(empty_folder / "mine") == {"7/notes.txt": b"of somebody else"}


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "a\x1b[31m"])
def test_a_sweep_stays_in_its_folder(empty_folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([DIGITS, "-m", "seed=0,1", f"name='{name}'"]) == 2
    assert "name becomes a folder" in capsys.readouterr().err
    assert list(empty_folder.rglob("*")) == []


def test_a_sweep_with_runs_in_it_is_never_discarded(empty_folder: Path) -> None:
    run = empty_folder / "sweep" / "0" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    (run.parent / "job.json").write_text("{}")
    with following():
        RememberFolder.folder = run.parent.parent
        Sweep().discard()
    assert (run.parent / "job.json").exists()
