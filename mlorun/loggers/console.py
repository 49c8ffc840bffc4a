"""What a person sees of a run: a live view on a terminal, plain lines elsewhere, a table at the end."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mlorun.loggers.live import LiveView
from mlorun.loggers.numbers import format_metric, listed
from mlorun.loggers.speed import Speed, say_speed, say_time, time_left
from mlorun.run.events import Event, Result, RunFacts, Status
from mlorun.run.log import listening
from mlorun.run.secrets import masked

# its messages go to log.txt alone, which repeats what the console shows
record = logging.getLogger("mlorun.console")

STYLES: Mapping[Status, str] = {
    "finished": "bold green",
    "interrupted": "bold magenta",
}
FAILED = "bold red"


@final
class ConsoleLogger:
    """Follows a run on standard output.

    interval_seconds    without a terminal: the least time between two reports of losses
    refresh_per_second  of the live view
    quiet               warnings and the last line alone
    """

    def __init__(
        self,
        interval_seconds: float = 10.0,
        refresh_per_second: float = 6.0,
        quiet: bool = False,
        screen: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # FORCE_COLOR makes rich take a pipe for a terminal: colours are welcome there, a live view is not
        self._screen = screen or Console(highlight=False, force_interactive=None if sys.stdout.isatty() else False)
        self._interval = interval_seconds
        self._refresh = refresh_per_second
        self._quiet = quiet
        self._clock = clock
        self._speed = Speed(clock=clock)
        self._open = ExitStack()
        self._facts: RunFacts | None = None
        self._view: LiveView | None = None
        self._reported: tuple[float, int] | None = None  # when, and at which step
        self._trained: set[str] = set()  # training metrics, by their names in a result

    def start(self, facts: RunFacts) -> None:
        """Say what runs, and where to; open the live view."""
        self._facts = facts
        self._open.enter_context(listening(_Messages(self._screen, logging.WARNING if self._quiet else logging.INFO)))
        if self._quiet:
            return
        self._say(f"{facts.name} on {facts.device}, {facts.total_steps:,} steps", style="bold")
        if facts.overrides:
            self._say(" ".join(facts.overrides), style="dim")
        self._say(shown_path(facts.folder), style="dim")
        if self._screen.is_interactive:
            self._view = LiveView(facts, self._speed)
            live = Live(self._view, console=self._screen, refresh_per_second=self._refresh, transient=True)
            self._open.enter_context(live)
        else:
            self._speed.read(facts.position())

    def event(self, event: Event) -> None:
        """Show an event: at once in the live view; in plain lines, when it is time for one."""
        if event.kind == "hypergradient" or self._quiet or not event.metrics:
            return
        if event.kind == "train":
            self._trained |= {f"{event.source}/{name}" for name in event.metrics}
        if self._view is not None:
            self._view.take(event)
            if event.kind == "eval":
                self._say(self._line(event), style="dim")  # it stays above the live view
        elif event.kind == "eval":
            self._say(self._line(event))
        elif self._due(event.step):
            # several problems report at a step: the speed is shown once
            again = self._reported is not None and self._reported[1] == event.step
            self._reported = self._reported if again else (self._clock(), event.step)
            self._say(self._line(event) if again else f"{self._line(event)}  ({self._pace(event.step)})")

    def end(self, result: Result | None) -> None:
        """Take the live view away; show how it ended, where it is known."""
        self._open.close()
        self._view = None
        if result is None or self._facts is None:
            return
        if not self._quiet:
            if self._screen.is_interactive:
                self._screen.print()
            self._screen.print(summary(result, self._trained))
        record.info(listed(result.metrics))
        for text in result.warnings:
            self._say(f"warning: {text}", style="magenta")
        self._say(f"{result.status}: {shown_path(self._facts.folder)}", style=STYLES.get(result.status, FAILED))

    def _due(self, step: int) -> bool:
        """Whether this step's losses are shown: those of all problems, or of none."""
        if self._reported is None:
            return True
        when, last = self._reported
        return step == last or self._clock() - when >= self._interval

    def _line(self, event: Event) -> str:
        assert self._facts is not None
        source = event.source if event.kind == "train" else f"evaluation of {event.source}"
        return f"step {event.step:,} / {self._facts.total_steps:,}  {source}  {listed(event.metrics)}"

    def _pace(self, step: int) -> str:
        assert self._facts is not None
        speed = self._speed.read(step)
        return f"{say_speed(speed)}, {time_left(step, self._facts.total_steps, speed)}"

    def _say(self, text: str, style: str = "") -> None:
        """A line, whole however long it is, so that it can be copied and searched."""
        self._screen.print(Text(text, style), soft_wrap=True)
        record.info(text)


def summary(result: Result, trained: set[str]) -> Table:
    """The last evaluation, or the last losses where there was none; and how long the run took."""
    evaluated = {name: value for name, value in result.metrics.items() if name not in trained}
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(style="bold", overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    for name, value in (evaluated or result.metrics).items():
        step = result.metric_steps.get(name, result.steps)
        table.add_row(name, format_metric(name, value), "" if step == result.steps else f"at step {step:,}")
    table.add_row("steps", f"{result.steps:,}")
    table.add_row("speed", say_speed(result.steps_per_second))
    table.add_row("time", f"{result.wall_seconds:.1f} s" if result.wall_seconds < 60 else say_time(result.wall_seconds))
    return table


def shown_path(path: Path) -> str:
    """As short as it can be typed from here."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@final
class _Messages(logging.Handler):
    """Log messages on the screen, above a live view. Tracebacks are for log.txt alone."""

    def __init__(self, screen: Console, level: int) -> None:
        super().__init__(level)
        self._screen = screen

    def emit(self, message: logging.LogRecord) -> None:
        if message.name == record.name or message.exc_info:
            # shown already; or what ended the run, which the caller shows
            return
        text = Text(masked(message.getMessage().rstrip()))
        if message.levelno >= logging.WARNING:
            text = Text.assemble((f"{message.levelname.lower()}: ", "bold magenta"), text)
        self._screen.print(text, soft_wrap=not self._screen.is_interactive)
