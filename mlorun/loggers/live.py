"""The live view of a run: a bar, a row for each problem, the latest evaluation. Drawn from rich's own thread.

Colours are the terminal's own, and none is white, yellow or black: light and dark themes both show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mlorun.loggers.numbers import format_metric
from mlorun.loggers.speed import Speed, say_speed, time_left
from mlorun.run.events import Event, RunFacts

WIDEST = 100


@final
class LiveView:
    """A renderable that shows the run as it is whenever it is drawn.

    `take` may be called by another thread than the one that draws: it replaces whole mappings.
    """

    def __init__(self, facts: RunFacts, speed: Speed | None = None) -> None:
        self._facts = facts
        self._speed = speed or Speed()
        self._newest: Mapping[str, Mapping[str, float]] = {}
        self._evaluations: Mapping[str, Event] = {}

    def take(self, event: Event) -> None:
        """Show this from the next drawing on."""
        if event.kind == "train":
            self._newest = {**self._newest, event.source: event.metrics}
        else:
            self._evaluations = {**self._evaluations, event.source: event}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        options = options.update_width(min(options.max_width, WIDEST))
        parts = [self._bar()]
        if self._newest:
            parts.append(self._problems(console, options))
        if self._evaluations:
            parts.append(self._latest())
        yield from console.render(Group(*parts), options)

    def _bar(self) -> Table:
        total = self._facts.total_steps
        step = self._facts.position()
        speed = self._speed.read(step)
        line = Table.grid(expand=True, padding=(0, 2, 0, 0))
        line.add_column(ratio=1)
        # as wide as they will ever be, so that the bar keeps its length
        line.add_column(justify="right", no_wrap=True, min_width=2 * len(f"{total:,}") + 3)
        line.add_column(justify="right", no_wrap=True, min_width=12)
        line.add_column(no_wrap=True, min_width=12)
        line.add_row(
            ProgressBar(total, step, style="dim", complete_style="cyan", finished_style="green"),
            Text(f"{step:,} / {total:,}"),
            Text(say_speed(speed)),
            Text(time_left(step, total, speed)),
        )
        return line

    def _problems(self, console: Console, options: ConsoleOptions) -> Table:
        newest = self._newest
        keys = list(dict.fromkeys(key for metrics in newest.values() for key in metrics))
        table = _table("problem", *keys)
        for name, metrics in newest.items():
            table.add_row(name, *(format_metric(key, metrics[key]) if key in metrics else "" for key in keys))
        if Measurement.get(console, options.update_width(10_000), table).maximum <= options.max_width:
            return table
        # too many metrics for a column each: a list of them, wrapped
        table = Table.grid(padding=(0, 3, 0, 0))
        table.add_column(style="bold", no_wrap=True)
        for name, metrics in newest.items():
            table.add_row(name, _pairs(metrics))
        return table

    def _latest(self) -> Table:
        step = max(event.step for event in self._evaluations.values())
        line = Table.grid(padding=(0, 3, 0, 0))
        line.add_column(style="dim", no_wrap=True)
        line.add_column()
        for event in self._evaluations.values():
            if event.step == step:
                line.add_row(f"at step {step:,}", _pairs(event.metrics))
        return line


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(first, style="bold", no_wrap=True)
    for other in others:
        # no shorter than a number in full, so that columns stay where they are
        table.add_column(other, justify="right", no_wrap=True, min_width=8)
    return table


def _pairs(metrics: Mapping[str, float]) -> Text:
    """`loss 0.2134   accuracy 94.00 %`, broken between pairs only."""
    pairs = [
        Text.assemble(
            (f"{name}\N{NO-BREAK SPACE}", "dim"),
            format_metric(name, value).replace(" ", "\N{NO-BREAK SPACE}"),
        )
        for name, value in metrics.items()
    ]
    return Text("   ").join(pairs)
