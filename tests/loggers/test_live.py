"""The live view, drawn as a terminal of some width would show it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from mlorun.loggers.live import LiveView
from mlorun.loggers.speed import Speed
from mlorun.run.events import Event, RunFacts


class Fake:
    """A run that is where a test says it is, at the time a test says it is."""

    def __init__(self, total: int = 3000) -> None:
        self.step = 0
        self.now = 0.0
        facts = RunFacts("digits", Path("runs"), total, "cpu", (), lambda: self.step)
        self.view = LiveView(facts, Speed(clock=lambda: self.now))

    def drawn(self, width: int) -> list[str]:
        screen = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        with screen.capture() as shown:
            screen.print(self.view)
        return [line.rstrip() for line in shown.get().splitlines()]


def train(step: int, source: str, **metrics: float) -> Event:
    return Event(step, "train", source, metrics)


def test_before_the_first_step_there_is_a_bar_that_promises_nothing() -> None:
    [bar] = Fake().drawn(80)
    assert "0 / 3,000" in bar
    assert "- steps/s" in bar
    assert "-:-- left" in bar


def test_the_bar_says_how_far_how_fast_and_how_long() -> None:
    fake = Fake()
    fake.drawn(80)
    fake.step, fake.now = 1000, 10.0
    [bar] = fake.drawn(80)
    assert bar.endswith("1,000 / 3,000   100 steps/s  0:20 left")


@pytest.mark.parametrize("width", [80, 140])
def test_the_bar_keeps_its_length_while_the_numbers_grow(width: int) -> None:
    fake = Fake()
    ends = set()
    for step, now in ((0, 0.0), (1, 1.5), (999, 2.0), (3000, 30.0)):
        fake.step, fake.now = step, now
        [bar] = fake.drawn(width)
        ends.add(bar.index("/ 3,000"))
    assert len(ends) == 1


def test_every_problem_has_a_row_and_every_metric_a_column() -> None:
    fake = Fake()
    fake.view.take(train(100, "classifier", loss=0.5))
    fake.view.take(train(100, "reweight", loss=0.25, accuracy=94.0))
    fake.view.take(train(200, "classifier", loss=0.4))
    _, head, classifier, reweight = fake.drawn(80)
    assert head.split() == ["problem", "loss", "accuracy"]
    assert classifier.split() == ["classifier", "0.4000"]
    assert reweight.split() == ["reweight", "0.2500", "94.00", "%"]
    # numbers end below the end of their column's name
    assert head.index("loss") + 4 == classifier.index("0.4000") + 6 == reweight.index("0.2500") + 6


def test_too_many_metrics_for_the_width_are_listed_and_none_is_cut() -> None:
    metrics = {f"metric_{index}": float(index) for index in range(12)}
    fake = Fake()
    fake.view.take(train(100, "classifier", **metrics))
    lines = fake.drawn(80)
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(lines).replace("\N{NO-BREAK SPACE}", " ")
    assert all(f"metric_{index} {float(index):#.4g}" in text for index in range(12))
    assert "…" not in text


def test_the_latest_evaluation_is_shown_whole_and_older_ones_are_not() -> None:
    fake = Fake()
    fake.view.take(Event(500, "eval", "gone", {"old/loss": 9.0}))
    fake.view.take(Event(1000, "eval", "classifier", {"test/loss": 0.25}))
    fake.view.take(Event(1000, "eval", "reweight", {"balanced/accuracy": 91.0}))
    text = "\n".join(fake.drawn(80)).replace("\N{NO-BREAK SPACE}", " ")
    assert "at step 1,000   test/loss 0.2500" in text
    assert "at step 1,000   balanced/accuracy 91.00 %" in text
    assert "old/loss" not in text


@pytest.mark.parametrize("width", [40, 80, 140, 300])
def test_no_line_is_wider_than_the_terminal_or_than_the_eye_can_follow(width: int) -> None:
    fake = Fake(total=10_000_000)
    fake.view.take(train(100, "a_problem_with_a_long_name", loss=0.5, accuracy=94.0))
    fake.view.take(Event(100, "eval", "a", {"test/loss": 0.25, "test/accuracy": 91.0}))
    assert all(len(line) <= min(width, 100) for line in fake.drawn(width))
