"""What signals ask of a run: the first ends it after the step at hand, a second one at once. No torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

PREEMPTED, INTERRUPTED = 75, 130  # exit codes
ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_SAVING = tuple(getattr(signal, name) for name in ("SIGUSR1",) if hasattr(signal, name))


class Terminated(BaseException):
    """SIGTERM or SIGHUP where nothing has to be finished; as KeyboardInterrupt is for SIGINT."""


def behind(error: BaseException) -> KeyboardInterrupt | Terminated | None:
    """The signal that an error was raised after: in a library, code that cleans up may break where a signal came."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        link = left.pop()
        if isinstance(link, KeyboardInterrupt | Terminated):
            return link
        if link is not None and id(link) not in seen:  # causes and contexts may lead in a circle
            seen.add(id(link))
            left += [link.__context__, link.__cause__]
    return None


@dataclass
class Received:
    """What has come so far. `number` is the first signal that ends the run."""

    number: int | None = None

    @property
    def name(self) -> str | None:
        """SIGTERM, for one."""
        return None if self.number is None else signal.Signals(self.number).name

    @property
    def exit_code(self) -> int:
        """Of a run that a signal ended: 130 after Ctrl-C, else 75."""
        return INTERRUPTED if self.number in (None, signal.SIGINT) else PREEMPTED


@contextmanager
def raising() -> Iterator[None]:
    """SIGTERM and SIGHUP raise Terminated, as SIGINT raises KeyboardInterrupt anyway: before a run has begun."""

    def handle(number: int, frame: FrameType | None) -> None:
        raise Terminated(signal.Signals(number).name)

    with _handling({number: handle for number in ENDING if number != signal.SIGINT}):
        yield


@contextmanager
def watching(stop: Callable[[], None], save: Callable[[], None]) -> Iterator[Received]:
    """SIGINT, SIGTERM, SIGHUP call `stop`, a second one raises KeyboardInterrupt or Terminated; SIGUSR1 calls `save`.

    Only in the main thread of the process: elsewhere, whoever runs us there has the signals.
    """
    received = Received()
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner and received.number is None:
            received.number = number
            stop()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise Terminated(signal.Signals(number).name)

    def save_now(number: int, frame: FrameType | None) -> None:
        save()

    with _handling({**dict.fromkeys(ENDING, end), **dict.fromkeys(_SAVING, save_now)}):
        yield received


@contextmanager
def _handling(handlers: Mapping[Any, Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            # one that is ignored stays so: nohup ignores SIGHUP
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
