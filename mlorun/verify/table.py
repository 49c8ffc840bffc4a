"""Results of verify, as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mlorun.verify import suite
from mlorun.verify.comparison import Comparison
from mlorun.verify.program import PointReport
from mlorun.verify.resolve import Resolved
from mlorun.verify.solve import SMALL
from mlorun.verify.suite import Cell
from mlorun.verify.verdict import FAR, GOOD, LABELS, LENGTH, UNKNOWN, WRONG_WAY

STYLES = {GOOD: "bold green", LENGTH: "bold", UNKNOWN: "bold yellow", FAR: "bold red", WRONG_WAY: "bold red"}
WIDTH = 130  # of a table that goes to a file or a pipe
LEGEND = (
    "error: relative, against the estimator's own definition with exact derivatives in float64",
    "off IFT: relative distance from the implicit function theorem's hypergradient at this point, on this batch; "
    "cosine with it; ~ where its solve left a residual. It is the derivative of the solved program only where the "
    "lower problem is solved",
)


def screen() -> Console:
    """Standard output; as wide as a table needs where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def say(console: Console, text: str, *, indent: int = 0, style: str = "") -> None:
    """One line; on a terminal in as many as it takes, indented alike."""
    if console.is_terminal:
        console.print(Padding(Text(text, style), (0, 0, 0, indent), expand=False))
    else:
        console.print(Text(" " * indent + text, style), soft_wrap=True)


def show_suite(console: Console, cells: Sequence[Cell]) -> None:
    """A row an estimator: float64 errors by oracle and their bound, the worst in float32 and its bound."""
    titles = sorted({cell.case for cell in cells})

    def table(tight: bool) -> Table:
        headers = (*(title.split()[0] for title in titles), "bound", "float32", "bound")
        made = _table("estimator", *headers, "by\ndesign" if tight else "by design", tight=tight)
        for name in suite.ENTRIES:
            mine = [cell for cell in cells if cell.estimator == name]
            double = {cell.case: cell for cell in mine if cell.dtype == torch.float64}
            single = [cell for cell in mine if cell.dtype == torch.float32]
            worst = max(single, key=lambda cell: cell.error, default=None)
            made.add_row(
                name,
                *(_error(double[title].error, double[title].holds, 0) if title in double else "" for title in titles),
                _number(next(iter(double.values())).bound, 0),
                _error(worst.error, all(cell.holds for cell in single), 0) if worst else "",
                _number(worst.bound, 0) if worst else "",
                _number(max(cell.by_design for cell in double.values()), 0),
            )
        return made

    _show(console, table)
    say(
        console,
        "by design: the largest distance from the derivative of the solved program (the closed form)",
        style="dim",
    )


def show_point(console: Console, report: PointReport, before: PointReport | None = None) -> None:
    """A table an upper problem and point, and what belongs to it, but for what stands at the point before already."""

    def table(tight: bool) -> Table:
        headers = ("error", "bound", "off IFT", "cosine", "norm")
        made = _table("edge", *([] if tight else ["estimator"]), *headers, tight=tight)
        for edge in report.edges:
            name = f"{edge.to} <- {edge.lower}"
            made.add_row(
                *([f"{name}\n  {edge.estimator}"] if tight else [name, edge.estimator]),
                _error(edge.error, edge.holds),
                _number(edge.bound),
                _approximate(_number(edge.off_ift), edge.solved),
                _approximate(_cosine(edge.cosine), edge.solved),
                _number(edge.norm),
            )
        return made

    say(console, f"step {report.step}, {report.upper}", style="bold")
    _show(console, table)
    if before is None:
        gradients = report.cost.seconds / report.lower_gradient_seconds
        milliseconds, megabytes = 1000 * report.cost.seconds, report.cost.peak_bytes / 1e6
        cost = f"{milliseconds:.2f} ms ({gradients:.1f} lower gradients), {megabytes:.1f} MB"
        say(console, f"cost of the hypergradient: {cost}", indent=2)
    for line in report.references if before is None else _new(report.references, before.references):
        say(console, f"reference: {line}", indent=2)
    if report.disturbed:
        say(console, f"a call changes: {', '.join(report.disturbed)}", indent=2, style="bold red")
    elif before is None or before.disturbed:
        kept = "parameters, buffers, optimizer state and random numbers"
        say(console, f"a call leaves {kept} as they were, bit for bit", indent=2)
    for line in report.explanations if before is None else _new(report.explanations, before.explanations):
        say(console, line, indent=2, style="yellow")
    for line in report.optimality:
        say(console, line, indent=2)
    if isinstance(report.resolved, str):
        if before is None or before.resolved != report.resolved:
            say(console, f"--resolve does not apply: {report.resolved}", indent=2)
    elif report.resolved is not None:
        show_resolved(console, report.resolved)
    verdict = report.verdict
    say(console, f"{LABELS[verdict.grade]}: {verdict.text}", indent=2, style=STYLES[verdict.grade])


def _new(lines: Sequence[str], before: Sequence[str]) -> list[str]:
    return [line for line in lines if line not in before]


def show_verdict(console: Console, worst: PointReport, count: int) -> None:
    """What is said of one upper problem after `count` points, by the worst of them; a line for each reason."""
    verdict = worst.verdict
    style = STYLES[verdict.grade]
    where = f" at step {worst.step}, the worst of {count} points" if count > 1 else ""
    say(console, f"{worst.upper}{where}: {verdict.text}", style=style)
    for line in verdict.reasons:
        say(console, f"{'note' if verdict.grade == GOOD else 'why'}: {line}", indent=2, style=style)


def show_last_line(console: Console, reports: Sequence[PointReport]) -> int:
    """The verdict of all points in a word, and the exit code that goes with it."""
    broken = sum(not edge.holds for report in reports for edge in report.edges)
    disturbed = sum(bool(report.disturbed) for report in reports)
    total = sum(len(report.edges) for report in reports)
    worst = max((report.verdict for report in reports), key=lambda verdict: verdict.grade)
    label, style = LABELS[worst.grade], STYLES[worst.grade]
    if disturbed:
        label, style = "NOT CLEAN", STYLES[FAR]
    if broken:
        label, style = "NOT AS DEFINED", STYLES[FAR]
    calls = f"{disturbed} calls left a trace" if disturbed else "no call left a trace"
    say(
        console, f"VERDICT: {label}; computed as defined: {total - broken} of {total} bounds hold, {calls}", style=style
    )
    return 0 if worst.passes and not broken and not disturbed else 1


def show_resolved(console: Console, resolved: Resolved) -> None:
    """How far the solves came, and a row a direction."""
    for name, solution in resolved.solutions.items():
        left, small = resolved.worst[name], SMALL * solution.scale
        before, after = resolved.losses[name]
        state = "solved again" if left <= SMALL else "NOT solved"
        say(
            console,
            f"{name} {state}: loss {before:.2e} before, {after:.2e} after {solution.gradients} gradients; norm of its "
            f"gradient {solution.before:.1e}, {solution.after:.1e}, {left * solution.scale:.1e} at worst beside it "
            f"(small is {small:.0e})",
            indent=2,
        )
    for line in resolved.notes:
        say(console, line, indent=2)

    def table(tight: bool) -> Table:
        headers = ("hypergradient", "re-solved", "indirect part", "re-solved")
        made = _table("direction", *headers[: 4 if resolved.direct else 2], tight=tight)
        for row in resolved.directions:
            numbers = (row.slope, row.quotient, row.indirect_slope, row.indirect_quotient)
            made.add_row(row.name, *(f"{number:+.4e}" for number in numbers[: 4 if resolved.direct else 2]))
        return made

    _show(console, table)
    share = "" if resolved.everywhere else "about "
    compared = (("hypergradient", resolved.whole), ("indirect part", resolved.indirect))
    for title, one in compared[: 2 if resolved.direct else 1]:
        if math.isnan(one.cosine):
            continue
        numbers = f"cosine {share}{_cosine(one.cosine)}, relative distance {share}{one.error:.1e}"
        say(console, f"{title} against the derivative of the solved program: {numbers}", indent=2)


def show_comparison(console: Console, rows: Sequence[Comparison], unit: float) -> None:
    """A row an estimator, quickest first, and who was refused; `unit` is the seconds of one lower gradient."""

    def table(tight: bool) -> Table:
        made = _table("estimator", "off IFT", "cosine", "norm", "ms", "lower gradients", "MB", tight=tight)
        for row in sorted(rows, key=lambda row: row.cost.seconds if row.cost else math.inf):
            if row.cost is None:
                continue
            made.add_row(
                row.name,
                _approximate(_number(row.error), row.solved),
                _approximate(_cosine(row.cosine), row.solved),
                _number(row.norm),
                f"{1000 * row.cost.seconds:.2f}",
                f"{row.cost.seconds / unit:.1f}",
                f"{row.cost.peak_bytes / 1e6:.1f}",
            )
        return made

    _show(console, table)
    for row in rows:
        if row.refused:
            say(console, f"{row.name}: {row.refused}", indent=2, style="dim")


def _show(console: Console, table: Callable[[bool], Table]) -> None:
    """Tight where it would not fit otherwise. A number is never cut: what is too wide even so, the terminal breaks."""
    made = table(False)
    if _width(made) > console.width:
        made = table(True)
    if _width(made) > console.width:
        console = Console(highlight=False, width=_width(made))
    console.print(made)


def _width(table: Table) -> int:
    return Console(width=10_000).measure(table).maximum


def _table(*headers: str, tight: bool) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0 if tight else 1))
    for index, header in enumerate(headers):
        words = index == 0 or header == "estimator"
        table.add_column(header, justify="left" if words else "right", no_wrap=True)
    return table


def _error(value: float, holds: bool, digits: int = 1) -> Text:
    text = _number(value, digits)
    return Text(text, style="green") if holds else Text(f"{text} !", style="bold red")


def _approximate(number: str, solved: bool) -> str:
    return number if solved or number == "-" else f"~{number}"


def _number(value: float, digits: int = 1) -> str:
    if math.isnan(value):
        return "-"
    return "0" if value == 0 else f"{value:.{digits}e}"


def _cosine(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
