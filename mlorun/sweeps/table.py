"""The results of a sweep as tables. No torch, no Hydra."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlorun.loggers.console import shown_path
from mlorun.loggers.speed import say_time
from mlorun.sweeps.jobs import UNFINISHED, Job


def show_summary(jobs: Sequence[Job], folder: Path, seconds: float | None = None) -> None:
    """Print the tables, the errors, the counts, and what can be done next.

    seconds   that the sweep took
    """
    screen = Console(highlight=False)
    for table in tables(jobs):
        screen.print(table)
        screen.print()
    for line in _errors(jobs, folder):
        screen.print(line, soft_wrap=True)
    counts = Counter(job.status for job in jobs)
    text = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    took = "" if seconds is None else f" in {say_time(seconds)}"
    screen.print(f"{text}{took}: {shown_path(folder)}", soft_wrap=True)
    if any(job.status in UNFINISHED for job in jobs):
        screen.print(f"go on with: mlorun resume {shown_path(folder)}", soft_wrap=True)
    elif any(job.status != "finished" for job in jobs):
        screen.print(f"repeat the failed: mlorun resume {shown_path(folder)} --failed", soft_wrap=True)


def _errors(jobs: Sequence[Job], folder: Path) -> Iterator[Text]:
    """One line for each error, with the jobs that it ended."""
    ended: dict[str, list[Job]] = {}
    for job in jobs:
        if job.error is not None:
            ended.setdefault(job.error.splitlines()[0].removeprefix("error: "), []).append(job)
    for first, group in ended.items():
        names = f"job{'s' if len(group) > 1 else ''} {', '.join(str(job.number) for job in group)}"
        yield Text.assemble((names, "bold red"), f"  {first}; see {shown_path(folder / str(group[0].number))}")


def tables(jobs: Sequence[Job]) -> Iterator[Table]:
    """One row for each job; then, if seeds were swept, mean and standard deviation over the seeds."""
    columns, metrics = swept_keys(jobs), shown_metrics(jobs)
    table = _table(("job", *columns, "status"), metrics)
    for job in jobs:
        values = [job.values.get(column, "") for column in columns]
        numbers = [f"{job.numbers[name]:.4g}" if name in job.metrics else "" for name in metrics]
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
            *(_spread([job.numbers[name] for job in group]) for name in metrics),
        )
    yield table


def _table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in texts:
        table.add_column(header, overflow="fold")
    for header in numbers:
        table.add_column(header, justify="right")
    return table


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}"


def swept_keys(jobs: Sequence[Job]) -> list[str]:
    """Keys whose values differ from job to job."""
    keys = dict.fromkeys(key for job in jobs for key in job.values)
    return [key for key in keys if len({job.values.get(key) for job in jobs}) > 1]


def shown_metrics(jobs: Sequence[Job]) -> list[str]:
    """Metrics that every finished job has: those of evaluations, or, without any, those of training."""
    finished = [job for job in jobs if job.status == "finished"]
    names = [name for name in finished[0].metrics if all(name in job.metrics for job in finished)] if finished else []
    return [name for name in names if name in finished[0].evaluated] or names
