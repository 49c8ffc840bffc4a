"""metrics.jsonl: the same events, the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from mlorun.loggers.jsonl import JsonlLogger, line
from mlorun.run.events import Event, RunFacts


def facts(folder: Path) -> RunFacts:
    return RunFacts("digits", folder, 10, "cpu", (), lambda: 0)


def test_a_line_has_its_keys_in_a_fixed_order_and_its_metrics_by_name() -> None:
    event = Event(500, "train", "classifier", {"loss": 0.21, "accuracy": 94})
    assert line(event) == (
        '{"step": 500, "kind": "train", "source": "classifier", "metrics": {"accuracy": 94.0, "loss": 0.21}}'
    )


def test_numbers_that_json_lacks_are_text() -> None:
    assert '"metrics": {"loss": "NaN"}' in line(Event(1, "train", "a", {"loss": float("nan")}))


def test_an_event_is_on_disk_before_the_next_one(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.start(facts(tmp_path))
    for step in (1, 2):
        logger.event(Event(step, "eval", "a", {"test/loss": 0.1}))
        lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(text)["step"] for text in lines] == list(range(1, step + 1))
    logger.end(None)


def test_a_run_in_two_attempts_leaves_the_bytes_of_a_run_in_one(tmp_path: Path) -> None:
    events = [Event(step, "train", "a", {"loss": 1 / step}) for step in (1, 2, 3)]
    for name, parts in (("one", [events]), ("two", [events[:1], events[1:]])):
        (tmp_path / name).mkdir()
        for part in parts:
            logger = JsonlLogger()
            logger.start(facts(tmp_path / name))
            for event in part:
                logger.event(event)
            logger.end(None)
    one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one.count(b"\n") == 3


def test_a_run_without_events_leaves_an_empty_file(tmp_path: Path) -> None:
    logger = JsonlLogger()
    logger.start(facts(tmp_path))
    logger.end(None)
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
