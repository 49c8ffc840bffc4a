"""The runs and sweeps here: how each ended, how far it came, and what can be done with it. No torch."""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlorun.errors import ConfigError
from mlorun.loggers.console import shown_path
from mlorun.run.find import run_folders, sweep_folders
from mlorun.run.folder import RunFolder
from mlorun.run.lock import is_locked
from mlorun.sweeps.jobs import UNFINISHED
from mlorun.sweeps.ledger import Ledger

RESUMABLE = ("preempted", "interrupted", "died", "out_of_disk", "out_of_memory", "failed")


def show_runs(root: Path, sweep_root: Path, screen: Console) -> None:
    """Print one row a run and a sweep, the newest last."""
    runs, sweeps = run_folders(root), sweep_folders(sweep_root)
    if not runs and not sweeps:
        screen.print(f"no runs in {root}, no sweeps in {sweep_root}; mlorun experiment=mwn_digits makes one")
        return
    if runs:
        screen.print(_table("run", "steps", [(shown_path(path), *_run(RunFolder(path))) for path in runs]))
    if runs and sweeps:
        screen.print()
    if sweeps:
        screen.print(_table("sweep", "jobs", [(shown_path(path), *_sweep(path)) for path in sweeps]))


def _table(kind: str, count: str, rows: list[tuple[str, str, str, str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in (kind, "status", count, "next"):
        table.add_column(header, overflow="fold", justify="right" if header == count else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _sweep(folder: Path) -> tuple[str, str, str]:
    """Status, finished jobs of all, and what can be done."""
    try:
        ledger = Ledger.read(folder)
    except ConfigError:
        return "unreadable", "", ""
    finished = sum(job.status == "finished" for job in ledger.jobs)
    count = f"{finished} of {len(ledger.jobs)}"
    command = f"mlorun resume {shown_path(folder)}"
    if is_locked(folder):
        return "running", count, ""
    if any(job.status in UNFINISHED for job in ledger.jobs):
        return "unfinished", count, command
    return ("finished", count, "") if finished == len(ledger.jobs) else ("failed", count, f"{command} --failed")


def _run(folder: RunFolder) -> tuple[str, str, str]:
    """Status, steps, and what can be done."""
    try:
        facts = folder.facts()
    except ConfigError:
        return "unreadable", "", ""
    status = str(facts["status"])
    if status == "running" and not is_locked(folder.path):
        status = "died"  # killed, or its machine went down
    steps = facts.get("steps")
    after = f"mlorun resume {shown_path(folder.path)}" if status in RESUMABLE else ""
    return status, f"{steps:,}" if isinstance(steps, int) else "", after
