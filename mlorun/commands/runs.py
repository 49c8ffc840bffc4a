"""The runs below a folder: how each ended, how far it came, and what can be done with it. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mlorun.loggers.console import shown_path
from mlorun.run.folder import RunFolder
from mlorun.run.lock import is_locked

RESUMABLE = ("preempted", "interrupted", "died", "out_of_disk", "out_of_memory", "failed")


def show_runs(root: Path, screen: Console) -> None:
    """Print one row a run, the newest last."""
    folders = sorted({path.parent.resolve() for path in root.glob("*/*/run.json")}, key=lambda path: path.name)
    if not folders:
        screen.print(f"no runs in {root}; mlorun experiment=mwn_digits makes one")
        return
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in ("run", "status", "steps", "next"):
        table.add_column(header, overflow="fold", justify="right" if header == "steps" else "left")
    for path in folders:
        table.add_row(shown_path(path), *_row(RunFolder(path)))
    screen.print(table)


def _row(folder: RunFolder) -> tuple[str, str, str]:
    """Status, steps, and what can be done."""
    try:
        facts: dict[str, Any] = folder.facts()
    except (OSError, ValueError):
        return "unreadable", "", ""
    status = str(facts.get("status"))
    if status == "running" and not is_locked(folder.path):
        status = "died"  # killed, or its machine went down
    steps = facts.get("steps")
    after = f"mlorun resume {shown_path(folder.path)}" if status in RESUMABLE else ""
    return status, "" if steps is None else f"{steps:,}", after
