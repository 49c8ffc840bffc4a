"""Results of a sweep as tables."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console

from mlorun.sweeps.jobs import Job
from mlorun.sweeps.table import shown_metrics, tables


def a_job(number: int, accuracy: float | None, *overrides: str) -> Job:
    status, exit_code = ("finished", 0) if accuracy is not None else ("failed", 1)
    metrics = {} if accuracy is None else {"classifier/loss": 0.5, "test/accuracy": accuracy}
    return Job(number, ("experiment=x", *overrides), status, exit_code, 1, metrics, evaluated=tuple(metrics)[1:])


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


def test_evaluations_of_any_split_are_shown_and_losses_where_there_are_none() -> None:
    metrics = {"classifier/loss": 0.5, "balanced/accuracy": 80.0, "test/accuracy": 70.0}
    job = Job(0, ("experiment=x",), "finished", 0, 1, metrics, evaluated=("balanced/accuracy", "test/accuracy"))
    assert shown_metrics([job]) == ["balanced/accuracy", "test/accuracy"]
    assert shown_metrics([replace(job, metrics={"classifier/loss": 0.5}, evaluated=())]) == ["classifier/loss"]


def test_a_sweep_that_was_recorded_before_says_nothing_of_evaluations() -> None:
    job = a_job(0, 90.0)
    recorded = {name: value for name, value in job.as_json().items() if name != "evaluated"}
    assert Job.from_json(recorded) == replace(job, evaluated=())
    assert Job.from_json(job.as_json()) == job


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
