"""What came of a sweep: its jobs, read from their folders, and tables of them. No torch, no Hydra."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

JOB = "job.json"  # what a job was asked for, and what ended it early; every job writes its own
SPLITS = ("test", "valid", "validation")  # evaluations worth a column before all others


@dataclass(frozen=True)
class Job:
    """One job as its folder tells it. `error` is what ended it early, in one line."""

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
        # hydra's group@problems.name.group is name.group again
        return {key.rpartition("@")[2].removeprefix("problems."): value for key, _, value in pairs}


def jobs_in(folder: Path | None) -> list[Job]:
    """The jobs of a sweep, in order."""
    found = [_job(path) for path in folder.glob(f"*/{JOB}")] if folder is not None else []
    return sorted(found, key=lambda one: one.number)


def _job(path: Path) -> Job:
    asked = json.loads(path.read_text(encoding="utf-8"))
    written = path.with_name("result.json")
    # a job that was refused has no result of its own, though its folder may hold that of an earlier one
    refused = "exit_code" in asked
    result = json.loads(written.read_text(encoding="utf-8")) if written.exists() and not refused else {}
    return Job(
        number=asked["number"],
        overrides=tuple(asked["overrides"]),
        status=result.get("status", "failed" if refused else "interrupted"),
        exit_code=result.get("exit_code", asked.get("exit_code", 130)),
        metrics=result.get("metrics", {}),
        error=asked.get("error"),
    )


def show_summary(jobs: Sequence[Job], folder: Path) -> None:
    """Print the tables, what went wrong, and the folder."""
    screen = Console(highlight=False)
    for table in tables(jobs):
        screen.print(table)
        screen.print()
    for found in jobs:
        if found.error is not None:
            first = found.error.splitlines()[0]
            screen.print(f"[bold red]job {found.number}[/]  {first}; see {folder / str(found.number)}", soft_wrap=True)
    counts = {status: sum(found.status == status for found in jobs) for status in {found.status for found in jobs}}
    said = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    screen.print(f"{said}: {folder}", soft_wrap=True)


def tables(jobs: Sequence[Job]) -> Iterator[Table]:
    """A row a job; then, where seeds were swept, mean and standard deviation over them."""
    columns, metrics = _swept(jobs), _metrics(jobs)
    table = _table(("job", *columns, "status"), metrics)
    for found in jobs:
        values = [found.values.get(column, "") for column in columns]
        numbers = [_number(found.metrics[name]) if name in found.metrics else "" for name in metrics]
        table.add_row(str(found.number), *values, found.status, *numbers)
    yield table
    groups: dict[tuple[str, ...], list[Job]] = {}
    others = [column for column in columns if column != "seed"]
    for found in jobs:
        if "seed" in columns and found.status == "finished":
            groups.setdefault(tuple(found.values.get(column, "") for column in others), []).append(found)
    if not any(len(group) > 1 for group in groups.values()):
        return
    table = _table((*others, "seeds"), [f"{name}, mean ± std" for name in metrics])
    for key, group in groups.items():
        table.add_row(
            *key,
            str(len(group)),
            *(_spread([_float(one.metrics.get(name)) for one in group]) for name in metrics),
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
    """A metric of a result.json, where a number that JSON lacks is a string; NaN for none."""
    return float("nan") if value is None else float(value)


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def _swept(jobs: Sequence[Job]) -> list[str]:
    """Keys whose values differ from job to job."""
    keys = dict.fromkeys(key for found in jobs for key in found.values)
    return [key for key in keys if len({found.values.get(key) for found in jobs}) > 1]


def _metrics(jobs: Sequence[Job]) -> list[str]:
    """What finished jobs have in common: of the evaluations, where there are any; else everything."""
    finished = [found for found in jobs if found.status == "finished"]
    names = [name for name in finished[0].metrics if all(name in one.metrics for one in finished)] if finished else []
    return [name for name in names if set(name.split("/")) & set(SPLITS)] or names
