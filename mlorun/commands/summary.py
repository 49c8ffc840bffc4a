"""The results of a sweep: its jobs, read from their folders, and tables of them. No torch, no Hydra."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

JOB = "job.json"  # in each job's folder: its number, its overrides, and the error that ended it
SPLITS = ("test", "valid", "validation")  # where these are evaluated, the table shows no other metrics


@dataclass(frozen=True)
class Job:
    """One job, as read from its folder. `error` is the error that ended it early, or None."""

    number: int
    overrides: tuple[str, ...]
    status: str
    exit_code: int
    metrics: Mapping[str, float]
    error: str | None

    @property
    def values(self) -> dict[str, str]:
        """The overrides as a mapping."""
        pairs = (text.lstrip("+").partition("=") for text in self.overrides)
        return {_short_form(key): value for key, _, value in pairs}


def _short_form(key: str) -> str:
    """classifier.module for module@problems.classifier.module, classifier.problem for problem@problems.classifier."""
    group, _, package = key.rpartition("@")
    short = package.removeprefix("problems.")
    return f"{short}.problem" if group == "problem" else short


def jobs_in(folder: Path | None) -> list[Job]:
    """The jobs of a sweep, in order."""
    jobs = [_job(path) for path in folder.glob(f"*/{JOB}")] if folder is not None else []
    return sorted(jobs, key=lambda job: job.number)


def _job(path: Path) -> Job:
    record = json.loads(path.read_text(encoding="utf-8"))
    file = path.with_name("result.json")
    # a refused job has no result; a result.json in its folder is of an earlier job
    refused = "exit_code" in record
    result = json.loads(file.read_text(encoding="utf-8")) if file.exists() and not refused else {}
    return Job(
        number=record["number"],
        overrides=tuple(record["overrides"]),
        status=result.get("status", "failed" if refused else "interrupted"),
        exit_code=result.get("exit_code", record.get("exit_code", 130)),
        metrics=result.get("metrics", {}),
        error=record.get("error"),
    )


def show_summary(jobs: Sequence[Job], folder: Path) -> None:
    """Print the tables, the errors, and the folder."""
    screen = Console(highlight=False)
    for table in tables(jobs):
        screen.print(table)
        screen.print()
    for job in jobs:
        if job.error is not None:
            first = job.error.splitlines()[0]
            screen.print(f"[bold red]job {job.number}[/]  {first}; see {folder / str(job.number)}", soft_wrap=True)
    counts = Counter(job.status for job in jobs)
    text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    screen.print(f"{text}: {folder}", soft_wrap=True)


def tables(jobs: Sequence[Job]) -> Iterator[Table]:
    """One row for each job; then, if seeds were swept, mean and standard deviation over the seeds."""
    columns, metrics = _swept(jobs), _metrics(jobs)
    table = _table(("job", *columns, "status"), metrics)
    for job in jobs:
        values = [job.values.get(column, "") for column in columns]
        numbers = [_number(job.metrics[name]) if name in job.metrics else "" for name in metrics]
        table.add_row(str(job.number), *values, job.status, *numbers)
    yield table
    groups: dict[tuple[str, ...], list[Job]] = {}
    others = [column for column in columns if column != "seed"]
    for job in jobs:
        if "seed" in columns and job.status == "finished":
            groups.setdefault(tuple(job.values.get(column, "") for column in others), []).append(job)
    if not any(len(group) > 1 for group in groups.values()):
        return
    table = _table((*others, "seeds"), [f"{name}, mean ± std" for name in metrics])
    for key, group in groups.items():
        table.add_row(
            *key,
            str(len(group)),
            *(_spread([_float(job.metrics.get(name)) for job in group]) for name in metrics),
        )
    yield table


def _table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in texts:
        table.add_column(header, overflow="fold")
    for header in numbers:
        table.add_column(header, justify="right")
    return table


def _number(value: Any) -> str:
    return f"{_float(value):.4g}"


def _float(value: Any) -> float:
    """A metric of a result.json, where NaN and infinity are strings; NaN for None."""
    return float("nan") if value is None else float(value)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def _swept(jobs: Sequence[Job]) -> list[str]:
    """Keys whose values differ from job to job."""
    keys = dict.fromkeys(key for job in jobs for key in job.values)
    return [key for key in keys if len({job.values.get(key) for job in jobs}) > 1]


def _metrics(jobs: Sequence[Job]) -> list[str]:
    """Metrics that every finished job has: those of SPLITS, or, without any, all of them."""
    finished = [job for job in jobs if job.status == "finished"]
    names = [name for name in finished[0].metrics if all(name in job.metrics for job in finished)] if finished else []
    return [name for name in names if set(name.split("/")) & set(SPLITS)] or names
