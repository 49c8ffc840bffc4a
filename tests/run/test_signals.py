"""The first signal asks, the second one ends; SIGUSR1 saves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from mlorun.cli import main
from mlorun.errors import ConfigError
from mlorun.run import signals


@pytest.fixture
def asked() -> Iterator[list[str]]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield []
    assert before == {number: signal.getsignal(number) for number in before}, "handlers are put back"


@pytest.mark.parametrize(
    ("number", "exit_code", "second"),
    [
        (signal.SIGINT, 130, KeyboardInterrupt),
        (signal.SIGTERM, 75, signals.Terminated),
        (signal.SIGHUP, 75, signals.Terminated),
    ],
)
def test_the_first_signal_asks_and_the_second_one_ends(
    asked: list[str], number: signal.Signals, exit_code: int, second: type[BaseException]
) -> None:
    with signals.watching(lambda: asked.append("stop"), lambda: asked.append("save")) as received:
        assert received.number is None
        os.kill(os.getpid(), number)
        assert asked == ["stop"]
        assert (received.name, received.exit_code) == (number.name, exit_code)
        with pytest.raises(second):
            os.kill(os.getpid(), number)
    assert asked == ["stop"]


def test_a_forked_worker_is_ended_by_the_first_signal_and_asks_nothing_of_the_run() -> None:
    with signals.watching(lambda: os._exit(1), lambda: None):
        pid = os.fork()
        if pid == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except signals.Terminated:
                os._exit(42)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


def test_sigusr1_saves_as_often_as_it_comes(asked: list[str]) -> None:
    with signals.watching(lambda: asked.append("stop"), lambda: asked.append("save")):
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert asked == ["save", "save"]


def test_before_a_run_sigterm_ends_as_ctrl_c_does() -> None:
    with signals.raising():
        for number in (signal.SIGTERM, signal.SIGHUP):
            with pytest.raises(signals.Terminated, match=number.name):
                os.kill(os.getpid(), number)


def test_a_signal_that_is_ignored_stays_so(asked: list[str]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with signals.watching(lambda: asked.append("stop"), lambda: None):
            os.kill(os.getpid(), signal.SIGHUP)
        assert asked == []
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_before_the_first_word_is_read_ends_in_silence(
    number: signal.Signals, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mlorun.run.secrets.masked", lambda text: os.kill(os.getpid(), number))
    assert main(["experiment=mwn_digits"]) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("signal_", "code"), [(KeyboardInterrupt(), 130), (signals.Terminated("SIGTERM"), 75)])
def test_a_signal_is_one_too_where_cleaning_up_breaks_on_it(
    signal_: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(args: list[str]) -> int:
        try:
            try:
                raise signal_
            finally:
                {}["flags"]
        except KeyError as error:
            raise ConfigError("a config cannot be read") from error

    monkeypatch.setattr("mlorun.cli._run", broken)
    assert main(["experiment=mwn_digits"]) == code
    assert signals.behind(ValueError()) is None


def test_causes_in_a_circle_end() -> None:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__context__ = second, first
    assert signals.behind(first) is None
    second.__cause__ = KeyboardInterrupt()
    assert signals.behind(first) is second.__cause__
