"""Sweeps whose jobs end in every way: what sweep.json says, what is shown, what a resumed sweep does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mlorun.cli import main
from mlorun.run.folder import RunFolder
from mlorun.run.lock import locked
from tests.sweeps import tiny

TINY = ["-m", "experiment=tiny"]


@pytest.fixture(autouse=True)
def program(empty_folder: Path) -> None:
    tiny.write(empty_folder)


def the_sweep() -> Path:
    (folder,) = Path("sweeps/tiny").iterdir()
    return folder


def record(folder: Path | None = None) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(((folder or the_sweep()) / "sweep.json").read_text())
    return read


def statuses() -> list[str]:
    return [job["status"] for job in record()["jobs"]]


def outcomes(folder: Path, *numbers: int) -> list[tuple[str, bytes]]:
    jobs = [folder / str(number) for number in numbers]
    return [
        (json.loads((job / "result.json").read_text())["params_sha256"], (job / "metrics.jsonl").read_bytes())
        for job in jobs
    ]


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_a_job_that_ends_in_any_way_is_recorded_and_stops_no_other(
    at_a_time: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "+one.ending=raise,exit,crash,kill,double,fine", f"sweep.jobs={at_a_time}"]) == 3
    assert statuses() == ["failed", "failed", "died", "died", "finished", "finished"]
    screen = capfd.readouterr()
    for text in ("a fault of the recipe", "the recipe ended the process", "left no result", "ended by SIGKILL"):
        assert text in screen.err
        assert text in screen.out, "and once more below the table"
    assert "2 died, 2 failed, 2 finished" in screen.out
    assert record()["exit_code"] == 3
    assert len(set(outcomes(the_sweep(), 4, 5))) == 1, "a default dtype of one job is not the next one's"


def test_a_failure_is_shown_when_it_happens_and_the_same_one_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "+one.ending=raise", "seed=0,1,2"]) == 3
    screen = capfd.readouterr()
    assert screen.err.count("a fault of the recipe") == 1
    assert screen.out.count("the same error as job 0") == 2
    assert "jobs 0, 1, 2  ValueError: a fault of the recipe" in screen.out


def test_fail_fast_ends_a_sweep_at_the_first_failure_and_names_those_that_never_ran(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert main([*TINY, "+one.ending=fine,raise,fine,fine", "sweep.fail_fast=true"]) == 3
    assert statuses() == ["finished", "failed", "waiting", "waiting"]
    assert "1 failed, 1 finished, 2 waiting" in capfd.readouterr().out
    Path("mended").touch()
    assert main(["resume", "latest", "--failed"]) == 0
    assert statuses() == ["finished"] * 4


def test_fail_fast_ends_the_jobs_beside_it_and_they_can_be_resumed() -> None:
    words = ["+one.ending=fine,raise", "+one.pause=0.3", "one.optimizer.lr=0.1", "engine.train_iters=50"]
    assert main([*TINY, *words, "sweep.jobs=2", "sweep.fail_fast=true"]) == 3
    assert statuses() == ["preempted", "failed"]


def test_resume_leaves_alone_what_is_finished_and_repeats_what_failed_only_if_asked() -> None:
    assert main([*TINY, "+one.ending=fine,raise,kill"]) == 3
    before = (the_sweep() / "0" / "result.json").stat().st_mtime_ns
    Path("mended").touch()
    assert main(["resume", "tiny"]) == 3
    assert statuses() == ["finished", "failed", "finished"]
    assert main(["resume", str(the_sweep()), "--failed"]) == 0
    assert statuses() == ["finished"] * 3
    assert (the_sweep() / "0" / "result.json").stat().st_mtime_ns == before
    assert main(["resume", "latest"]) == 0, "nothing is left"


def test_a_job_that_could_not_be_composed_is_refused_and_the_others_run(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "one.optimizer.lr=0.1,fast"]) == 3
    assert statuses() == ["finished", "refused"]
    assert record()["jobs"][1]["exit_code"] == 2
    assert "one.optimizer.lr" in capfd.readouterr().err


def test_jobs_that_share_the_cores_get_the_same_bits_as_jobs_alone(empty_folder: Path) -> None:
    words = ["seed=0,1,2", "threads=1"]
    assert main([*TINY, *words, "hydra.sweep.dir=one"]) == 0
    assert main([*TINY, *words, "hydra.sweep.dir=two", "sweep.jobs=3"]) == 0
    assert outcomes(empty_folder / "one", 0, 1, 2) == outcomes(empty_folder / "two", 0, 1, 2)
    assert record(Path("two"))["at_a_time"] == 3


def test_threads_of_one_job_are_not_those_of_the_next() -> None:
    assert main([*TINY, "threads=2,null,1"]) == 0
    folder = the_sweep()
    threads = [json.loads((folder / str(n) / "run.json").read_text())["origin"]["threads"] for n in range(3)]
    assert threads[0] == 2
    assert threads[2] == 1
    assert threads[1] == int(os.environ["OMP_NUM_THREADS"])


def test_the_sweep_is_no_part_of_a_job(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "seed=0,1", "sweep.jobs=2"]) == 0
    jobs = record()["jobs"]
    assert [job["overrides"] for job in jobs] == [["experiment=tiny", f"seed={seed}"] for seed in (0, 1)]
    assert len({job["id"] for job in jobs}) == 2
    assert main([*TINY, "sweep.jobs=1,2"]) == 2
    assert main([*TINY, "seed=0,1", "sweep.jobs=0"]) == 2
    assert "sweep.jobs must be at least 1" in capfd.readouterr().err


def test_a_reference_to_hydra_in_a_job_is_resolved() -> None:
    assert main([*TINY, "one.optimizer.lr=0.1,0.2", "seed=${hydra:job.num}"]) == 0
    assert [f"seed: {n}" in (the_sweep() / str(n) / "config.yaml").read_text() for n in (0, 1)] == [True, True]


def test_only_one_process_runs_a_sweep(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "+one.ending=kill"]) == 3
    with locked(the_sweep()):
        assert main(["resume", "latest"]) == 6
    assert "another process" in capfd.readouterr().err


def test_a_sweep_goes_on_with_what_it_was_started_with(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "+one.ending=kill"]) == 3
    assert main(["resume", "latest", "seed=7"]) == 2
    assert "a sweep goes on with the overrides" in capfd.readouterr().err
    assert main(["resume", "latest", "sweep.jobs=many"]) == 2
    assert main(["resume", "latest", "sweep.jobs=0"]) == 2
    (the_sweep() / "sweep.json").write_text("{")
    assert main(["resume", "latest"]) == 2
    assert "the record of the sweep cannot be read" in capfd.readouterr().err


def test_config_files_that_changed_meanwhile_are_named(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "+one.ending=raise,fine", "sweep.fail_fast=true"]) == 3
    assert statuses() == ["failed", "waiting"]
    file = Path("configs/experiment/tiny.yaml")
    file.write_text(file.read_text().replace("train_iters: 6", "train_iters: 7"))
    assert main(["resume", "latest"]) == 3
    assert "the config files have changed" in capfd.readouterr().out


def test_mlorun_ls_runs_says_how_a_sweep_ended_and_how_to_go_on(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*TINY, "+one.ending=fine,raise", "sweep.fail_fast=true", "hydra.sweep.dir=sweeps/a/b"]) == 3
    capfd.readouterr()
    assert main(["ls", "runs"]) == 0
    words = capfd.readouterr().out.split()
    assert {"sweeps/a/b", "unfinished", "resume"} <= {*words} or "--failed" in words


def begun(count: int, folder: Path = Path("sweeps/tiny")) -> Path:
    """Waits until so many jobs have begun to train."""
    for _ in range(600):
        if len(list(folder.glob("*/*/metrics.jsonl"))) >= count:
            return next(folder.iterdir())
        time.sleep(0.05)
    raise AssertionError("no job has begun")


def shell(words: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "mlorun", *words], start_new_session=True)


SLOW = [*TINY, "seed=0,1,2", "+one.pause=0.05", "engine.train_iters=25", "threads=1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, bytes]]:
    """What the jobs of SLOW come to where nobody interrupts them."""
    folder, before = tmp_path_factory.mktemp("whole"), Path.cwd()
    tiny.write(folder)
    os.chdir(folder)
    try:
        assert main([*SLOW, "hydra.sweep.dir=whole"]) == 0
    finally:
        os.chdir(before)
    return outcomes(folder / "whole", 0, 1, 2)


@pytest.mark.parametrize(
    ("number", "code", "status", "to_all"),
    [
        (signal.SIGINT, 130, "interrupted", False),
        (signal.SIGINT, 130, "interrupted", True),
        (signal.SIGTERM, 75, "preempted", True),
    ],
)
def test_a_signal_ends_every_job_after_its_step_and_the_sweep_goes_on_to_the_same_bits(
    number: int, code: int, status: str, to_all: bool, whole: list[tuple[str, bytes]]
) -> None:
    process = shell([*SLOW, "sweep.jobs=2"])
    folder = begun(2)
    if to_all:
        os.killpg(process.pid, number)  # a terminal, or a batch system, tells the whole group
    else:
        os.kill(process.pid, number)
    assert process.wait(60) == code
    assert statuses() == [status, status, "waiting"]
    assert record()["exit_code"] == code
    assert main(["resume", str(folder)]) == 0
    assert outcomes(folder, 0, 1, 2) == whole


def test_jobs_end_and_save_when_the_process_of_the_sweep_is_killed_and_who_resumes_at_once_waits_for_them() -> None:
    process = shell([*SLOW, "sweep.jobs=2"])
    folder = begun(2)
    process.kill()
    process.wait()
    assert main(["resume", str(folder)]) == 0
    assert statuses() == ["finished"] * 3
    for number in (0, 1):
        first, second = RunFolder(folder / str(number)).facts()["attempts"]
        assert (first["status"], second["from_step"]) == ("preempted", first["to_step"])


def test_a_job_that_outlived_its_sweep_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*TINY, "seed=0,1"]) == 0
    job = the_sweep() / "0"
    (job / "result.json").unlink()
    hold = (
        "import sys; from mlorun.run.lock import *\nwith locked(Path(sys.argv[1])): print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(job)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr("mlorun.sweeps.resume.sleep", lambda seconds: holder.communicate("\n"))
    assert main(["resume", str(the_sweep())]) == 0
    assert "waiting for job 0, which has outlived its sweep" in capfd.readouterr().out
    assert statuses() == ["finished"] * 2


def test_a_job_that_does_not_end_keeps_its_sweep_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*TINY, "seed=0,1"]) == 0
    (the_sweep() / "0" / "result.json").unlink()
    monkeypatch.setattr("mlorun.sweeps.resume.PATIENCE", -1.0)
    with locked(the_sweep() / "0"):
        assert main(["resume", str(the_sweep())]) == 6


def test_a_second_signal_ends_a_sweep_at_once() -> None:
    process = shell([*TINY, "seed=0,1", "+one.pause=30", "engine.train_iters=3"])
    folder = Path("sweeps/tiny")
    for _ in range(600):
        if list(folder.glob("*/0/run.json")):
            break
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 130
    assert statuses() == ["interrupted", "waiting"]
