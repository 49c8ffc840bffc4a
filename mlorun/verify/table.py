"""What verify found, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mlorun.verify import suite
from mlorun.verify.program import Comparison, PointReport
from mlorun.verify.suite import Found

WIDTH = 130  # of a table that goes to a file or a pipe


def screen() -> Console:
    """Standard output; as wide as a table needs where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def suite_table(found: Sequence[Found]) -> Table:
    """A row an estimator: float64 errors by oracle and their bound, the worst in float32 and its bound."""
    titles = sorted({cell.case for cell in found})
    table = _table("estimator", *(title.split()[0] for title in titles), "bound", "float32", "bound", "off exact")
    for name in suite.ENTRIES:
        mine = [cell for cell in found if cell.estimator == name]
        double = {cell.case: cell for cell in mine if cell.dtype == torch.float64}
        single = [cell for cell in mine if cell.dtype == torch.float32]
        worst = max(single, key=lambda cell: cell.error, default=None)
        table.add_row(
            name,
            *(_error(double[title].error, double[title].holds, 0) if title in double else "" for title in titles),
            _number(next(iter(double.values())).bound, 0),
            _error(worst.error, all(cell.holds for cell in single), 0) if worst else "",
            _number(worst.bound, 0) if worst else "",
            _number(max(cell.off_exact for cell in double.values()), 0),
        )
    return table


def point_parts(report: PointReport) -> Iterable[RenderableType]:
    """A table an upper problem and point, and what belongs to it."""
    yield Text(f"step {report.step}, {report.upper}", style="bold")
    table = _table("edge", "estimator", "error", "bound", "off exact", "cosine", "norm")
    for edge in report.edges:
        table.add_row(
            f"{edge.to} <- {edge.lower}",
            edge.estimator,
            _error(edge.error, edge.holds),
            _number(edge.bound),
            _about(_number(edge.off_exact), edge.solved),
            _about(_cosine(edge.cosine), edge.solved),
            _number(edge.norm),
        )
    yield table
    gradients = report.cost.seconds / report.lower_gradient_seconds
    yield Text(
        f"  cost of the hypergradient: {1000 * report.cost.seconds:.2f} ms ({gradients:.1f} lower gradients), "
        f"{report.cost.peak_bytes / 1e6:.1f} MB"
    )
    for line in report.references:
        yield Text(f"  reference: {line}")
    if report.disturbed:
        yield Text(f"  a call changes: {', '.join(report.disturbed)}", style="bold red")
    else:
        yield Text("  a call leaves parameters, buffers, optimizer state and random numbers as they were, bit for bit")
    for line in report.explanations:
        yield Text(f"  {line}", style="yellow")


def comparison_parts(rows: Sequence[Comparison], unit: float) -> Iterable[RenderableType]:
    """A row an estimator, quickest first, and who was refused; `unit` is the seconds of one lower gradient."""
    table = _table("estimator", "off exact", "cosine", "norm", "ms", "lower gradients", "MB")
    for row in sorted(rows, key=lambda row: row.cost.seconds if row.cost else math.inf):
        if row.cost is None:
            continue
        table.add_row(
            row.name,
            _number(row.error),
            _cosine(row.cosine),
            _number(row.norm),
            f"{1000 * row.cost.seconds:.2f}",
            f"{row.cost.seconds / unit:.1f}",
            f"{row.cost.peak_bytes / 1e6:.1f}",
        )
    yield table
    for row in rows:
        if row.refused:
            yield Text(f"  {row.name}: {row.refused}", style="dim")


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, header in enumerate(headers):
        numeric = index > 0 and header != "estimator"
        table.add_column(header, justify="right" if numeric else "left", no_wrap=numeric or header == "estimator")
    return table


def _error(value: float, holds: bool, digits: int = 1) -> Text:
    said = _number(value, digits)
    return Text(said, style="green") if holds else Text(f"{said} !", style="bold red")


def _about(said: str, solved: bool) -> str:
    return said if solved or said == "-" else f"~{said}"


def _number(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return "-"
    return "0" if value == 0 else f"{value:.{digits}e}"


def _cosine(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
