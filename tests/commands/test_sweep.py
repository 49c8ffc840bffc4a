"""Sweeps: their folders, exit codes and tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from mlorun import training
from mlorun.cli import main
from mlorun.commands.summary import Job, jobs_in, tables
from mlorun.commands.sweep import RememberFolder, Sweep, following
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


def test_discarding_touches_nothing_but_its_own(empty_folder: Path) -> None:
    folder = empty_folder / "sweeps" / "x"
    (folder / "0").mkdir(parents=True)
    (folder / "0" / "job.json").write_text("{}")
    (folder / "multirun.yaml").write_text("")
    (folder / "precious.txt").write_text("mine")
    (empty_folder / "0").mkdir()
    with following() as progress:
        RememberFolder().on_multirun_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))
        progress.discard()
    assert [path.name for path in folder.iterdir()] == ["precious.txt"]
    assert (empty_folder / "0").is_dir()


def test_a_sweep_with_runs_in_it_is_never_discarded(empty_folder: Path) -> None:
    run = empty_folder / "sweep" / "0" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    (run.parent / "job.json").write_text("{}")
    with following():
        RememberFolder.folder = run.parent.parent
        Sweep().discard()
    assert (run.parent / "job.json").exists()
