"""Loggers together: one that breaks is left out and named, and the others and the run go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlorun.loggers.following import following
from mlorun.run.events import Event, RunFacts

FACTS = RunFacts("x", Path("x"), total_steps=1, device="cpu", overrides=(), position=lambda: 0)
EVENT = Event(step=1, kind="train", source="one", metrics={"loss": 1.0})
STAGES = ["start", "event", "end"]


class Ear:
    """Hears all, and raises an error at one stage."""

    def __init__(self, stage: str = "", error: BaseException | None = None) -> None:
        self.stage, self.error, self.heard = stage, error, list[str]()

    def _hear(self, stage: str) -> None:
        self.heard.append(stage)
        if stage == self.stage and self.error is not None:
            raise self.error

    def start(self, facts: RunFacts) -> None:
        self._hear("start")

    def event(self, event: Event) -> None:
        self._hear("event")

    def end(self, result: Any) -> None:
        self._hear("end")


def told(*ears: Ear) -> None:
    with following(ears, FACTS) as listeners:
        listeners.event(EVENT)
        listeners.end(None)


@pytest.mark.parametrize("stage", STAGES)
def test_a_logger_that_raises_is_left_out_and_named(stage: str, caplog: pytest.LogCaptureFixture) -> None:
    broken, other = Ear(stage, ValueError("no server")), Ear()
    told(broken, other)
    assert other.heard == STAGES
    assert broken.heard == STAGES[: STAGES.index(stage) + 1]
    assert "Ear" in caplog.text and "no server" in caplog.text


def test_a_file_that_cannot_be_written_is_no_matter_of_one_logger() -> None:
    broken, other = Ear("event", OSError("full")), Ear()
    with pytest.raises(OSError, match="full"):
        told(broken, other)
    assert other.heard[-1] == "end"
