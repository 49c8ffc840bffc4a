"""What a run says reaches log.txt, tracebacks in full, and nobody who should not hear it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlorun.run.log import buffered, listening, log_to

log = logging.getLogger("mlorun.test")


class Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@pytest.fixture
def root_ear() -> Iterator[Ear]:
    ear = Ear()
    logging.getLogger().addHandler(ear)
    yield ear
    logging.getLogger().removeHandler(ear)


def test_messages_go_to_the_file_in_order_with_their_level(tmp_path: Path) -> None:
    with log_to(tmp_path / "log.txt"):
        log.info("first %d", 1)
        log.warning("second")
    log.warning("too late")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert [line.split(maxsplit=2)[2] for line in lines] == ["INFO    first 1", "WARNING second"]


def test_a_traceback_is_in_the_file_in_full(tmp_path: Path) -> None:
    with log_to(tmp_path / "log.txt"):
        try:
            raise ValueError("deep")
        except ValueError:
            log.exception("the run failed")
    text = (tmp_path / "log.txt").read_text()
    assert "Traceback (most recent call last)" in text
    assert __file__ in text
    assert "ValueError: deep" in text


def test_a_second_attempt_adds_to_the_file(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with log_to(tmp_path / "log.txt"):
            log.info(word)
    text = (tmp_path / "log.txt").read_text()
    assert "first" in text
    assert "second" in text


def test_python_warnings_are_in_the_file(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with log_to(tmp_path / "log.txt"):
            warnings.warn("old torch", UserWarning, stacklevel=1)
    assert "UserWarning: old torch" in (tmp_path / "log.txt").read_text()


def test_the_root_logger_hears_nothing_meanwhile_and_everything_afterwards(tmp_path: Path, root_ear: Ear) -> None:
    with log_to(tmp_path / "log.txt"):
        log.warning("inside")
    log.warning("outside")
    assert root_ear.heard == ["outside"]


def test_everything_is_as_before_even_after_an_error(tmp_path: Path) -> None:
    loggers = [logging.getLogger(name) for name in ("mlorun", "py.warnings")]
    show = warnings.showwarning
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    with pytest.raises(KeyboardInterrupt), buffered(), log_to(tmp_path / "log.txt"), listening(Ear()):
        raise KeyboardInterrupt
    assert [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers] == before
    assert warnings.showwarning is show


def test_what_was_said_before_there_was_a_folder_is_heard_by_all_once_released(tmp_path: Path) -> None:
    ear = Ear()
    with buffered() as buffer:
        log.info("early")
        with log_to(tmp_path / "log.txt"), listening(ear):
            assert ear.heard == []
            log.info("already heard")
            buffer.flush()
            log.info("late")
    assert ear.heard == ["already heard", "early", "late"]
    text = (tmp_path / "log.txt").read_text()
    assert [text.count(word) for word in ear.heard] == [1, 1, 1]


def test_what_only_the_file_heard_comes_to_the_console_once_it_is_there(tmp_path: Path) -> None:
    ear = Ear()
    ear.setLevel(logging.WARNING)
    with buffered() as buffer, log_to(tmp_path / "log.txt"):
        log.info("goes on")
        log.warning("not as before")
        with listening(ear):
            buffer.flush()
    assert ear.heard == ["not as before"]


def test_what_nobody_released_still_comes_out_at_the_end(root_ear: Ear) -> None:
    def broken() -> None:
        with buffered():
            log.warning("early")
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        broken()
    assert root_ear.heard == ["early"]
