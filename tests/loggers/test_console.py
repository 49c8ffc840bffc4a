"""The console: a live view on a terminal, plain lines elsewhere, and how it ended."""

from __future__ import annotations

import io
import logging
import re
from pathlib import Path

import pytest
from rich.console import Console

from mlorun.loggers.console import ConsoleLogger, summary
from mlorun.run.events import Event, Result, RunFacts, Status
from mlorun.run.log import log_to

log = logging.getLogger("mlorun.test")


class Seat:
    """Someone in front of a console, with a clock in the hand."""

    def __init__(self, folder: Path, *, terminal: bool) -> None:
        self.now = 0.0
        self.file = io.StringIO()
        self.screen = Console(file=self.file, force_terminal=terminal, width=80, highlight=False)
        self.logger = ConsoleLogger(10.0, 8.0, screen=self.screen, clock=lambda: self.now)
        self.facts = RunFacts("digits", folder, 3000, "cpu", ("seed=1",), lambda: 0)

    def report(self, step: int, seconds: float) -> None:
        """Both problems report a loss."""
        self.now = seconds
        for source in ("classifier", "reweight"):
            self.logger.event(Event(step, "train", source, {"loss": 0.5}))

    @property
    def text(self) -> str:
        return self.file.getvalue()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@pytest.fixture
def plain(tmp_path: Path) -> Seat:
    return Seat(tmp_path, terminal=False)


@pytest.fixture
def terminal(tmp_path: Path) -> Seat:
    return Seat(tmp_path, terminal=True)


def result(status: Status = "finished") -> Result:
    metrics = {"classifier/loss": 0.3, "test/loss": 0.2312, "test/accuracy": 95.4}
    return Result(status, 0, 3000, metrics, "ab", 6.1, 489.0)


def test_plain_lines_open_with_what_runs_and_where_to(plain: Seat) -> None:
    plain.logger.start(plain.facts)
    plain.logger.end(None)
    assert plain.lines == ["digits on cpu, 3,000 steps", "seed=1", str(plain.facts.folder)]


def test_the_first_report_shows_and_then_one_an_interval(plain: Seat) -> None:
    plain.logger.start(plain.facts)
    for step, seconds in ((100, 1.0), (200, 5.0), (300, 10.9), (400, 11.0), (500, 20.9), (600, 21.0)):
        plain.report(step, seconds)
    plain.logger.end(None)
    assert [line.split()[1] for line in plain.lines if line.startswith("step")] == [
        "100", "100", "400", "400", "600", "600",
    ]  # fmt: skip


def test_a_report_shows_every_problem_and_says_once_how_fast_it_goes(plain: Seat) -> None:
    plain.logger.start(plain.facts)
    plain.report(100, 1.0)
    plain.logger.end(None)
    assert plain.lines[3:] == [
        "step 100 / 3,000  classifier  loss 0.5000  (100 steps/s, 0:29 left)",
        "step 100 / 3,000  reweight  loss 0.5000",
    ]


def test_every_evaluation_shows_however_soon(plain: Seat) -> None:
    plain.logger.start(plain.facts)
    for step in (1, 2, 3):
        plain.logger.event(Event(step, "eval", "classifier", {"test/accuracy": 95.4}))
    plain.logger.end(None)
    assert plain.lines[-1] == "step 3 / 3,000  evaluation of classifier  test/accuracy 95.40 %"
    assert len(plain.lines) == 6


def test_plain_output_has_no_control_characters_and_no_broken_lines(plain: Seat) -> None:
    plain.logger.start(plain.facts)
    plain.report(100, 1.0)
    log.warning("word " * 40)
    plain.logger.event(Event(100, "eval", "classifier", {f"test/metric_{n}": 0.1 for n in range(9)}))
    plain.logger.end(result())
    assert not re.search(r"[^\n\x20-\x7e]", plain.text)
    assert any("metric_0" in line and "metric_8" in line for line in plain.lines)
    assert any(line.count("word") == 40 for line in plain.lines)


def test_brackets_are_text_and_not_markup(plain: Seat) -> None:
    plain.logger.start(plain.facts)
    log.info("betas=[0.9, 0.999] [bold]")
    plain.logger.end(None)
    assert plain.lines[-1] == "betas=[0.9, 0.999] [bold]"


def test_the_end_shows_the_evaluation_the_pace_and_the_folder(plain: Seat) -> None:
    plain.logger.start(plain.facts)
    plain.report(3000, 1.0)
    plain.logger.end(result())
    ending = [line.split() for line in plain.lines[-6:]]
    assert ending == [
        ["test/loss", "0.2312"],
        ["test/accuracy", "95.40", "%"],
        ["steps", "3,000"],
        ["speed", "489", "steps/s"],
        ["time", "6.1", "s"],
        ["finished:", str(plain.facts.folder)],
    ]


def test_a_run_without_evaluations_ends_with_its_losses() -> None:
    screen = Console(file=io.StringIO(), width=80)
    with screen.capture() as shown:
        screen.print(summary(Result("finished", 0, 1, {"a/loss": 0.5}, "ab", 61.0, 1.0), {"a/loss"}))
    assert "a/loss" in shown.get()
    assert "1:01" in shown.get()


def test_the_path_is_as_short_as_it_can_be_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    seat = Seat(tmp_path / "runs" / "digits" / "1", terminal=False)
    seat.logger.start(seat.facts)
    seat.logger.end(result())
    assert seat.lines[-1] == "finished: runs/digits/1"


def test_a_terminal_gets_a_live_view_and_its_cursor_back(terminal: Seat) -> None:
    terminal.logger.start(terminal.facts)
    terminal.report(100, 1.0)
    terminal.logger.end(result("interrupted"))
    hide, show = "\x1b[?25l", "\x1b[?25h"
    assert terminal.text.count(hide) == 1
    assert terminal.text.count(show) == 1
    assert terminal.text.index(hide) < terminal.text.index("- steps/s") < terminal.text.index(show)
    after = terminal.text[terminal.text.index(show) :]
    erase_line_above = "\x1b[1A\x1b[2K"
    assert erase_line_above in after
    assert "━" not in after
    assert "test/accuracy" in after
    assert "interrupted: " in after


def test_the_cursor_comes_back_without_a_result_too(terminal: Seat) -> None:
    terminal.logger.start(terminal.facts)
    terminal.logger.end(None)
    terminal.logger.end(None)
    assert terminal.text.count("\x1b[?25h") == 1


def test_no_color_is_honoured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def colours(text: str) -> list[str]:
        return re.findall(r"\x1b\[[0-9;]*3[0-7][0-9;]*m", text)

    for no_color in (False, True):
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
            monkeypatch.setenv("TERM", "xterm-256color")
        seat = Seat(tmp_path, terminal=True)
        seat.logger.start(seat.facts)
        seat.logger.end(result())
        assert bool(colours(seat.text)) != no_color


def test_messages_show_above_the_live_view_and_in_the_log(terminal: Seat, tmp_path: Path) -> None:
    with log_to(tmp_path / "log.txt"):
        terminal.logger.start(terminal.facts)
        log.warning("class 3 is small")
        terminal.logger.end(result())
        log.info("afterwards")
    assert "class 3 is small" in terminal.text
    assert "afterwards" not in terminal.text
    assert "class 3 is small" in (tmp_path / "log.txt").read_text()


def test_a_traceback_is_in_the_log_and_not_on_the_console(plain: Seat, tmp_path: Path) -> None:
    with log_to(tmp_path / "log.txt"):
        plain.logger.start(plain.facts)
        try:
            raise ValueError("deep")
        except ValueError:
            log.exception("the run failed")
        plain.logger.end(result("failed"))
    assert "Traceback" not in plain.text
    assert "Traceback" in (tmp_path / "log.txt").read_text()


@pytest.mark.parametrize("is_terminal", [False, True])
def test_evaluations_and_the_end_are_in_the_log_once(tmp_path: Path, is_terminal: bool) -> None:
    seat = Seat(tmp_path, terminal=is_terminal)
    with log_to(tmp_path / "log.txt"):
        seat.logger.start(seat.facts)
        seat.logger.event(Event(500, "eval", "classifier", {"test/accuracy": 95.4}))
        seat.logger.end(result())
    text = (tmp_path / "log.txt").read_text()
    assert text.count("step 500 / 3,000  evaluation of classifier  test/accuracy 95.40 %") == 1
    assert text.count("finished: ") == 1


def test_a_pipe_gets_plain_lines_even_where_colours_are_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    logger = ConsoleLogger()
    logger.start(RunFacts("digits", tmp_path, 10, "cpu", (), lambda: 0))
    logger.end(None)
    shown = capsys.readouterr().out
    assert "digits on cpu" in shown
    assert "\x1b[?25l" not in shown
