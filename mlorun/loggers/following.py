"""The loggers of a run, together: one that breaks is left out, and the run goes on."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlorun.run import artifacts
from mlorun.run.events import Event, Logger, Result, RunFacts

log = logging.getLogger("mlorun.run")


class Listeners:
    """Every logger that has started and has not broken.

    A logger that raises is left out from then on, and the log says so. An OSError of a file is raised: it means that
    something which belongs to the run was not written. A reader of standard output that has gone is neither.
    """

    def __init__(self) -> None:
        self._loggers: list[Logger] = []

    def start(self, loggers: Sequence[Logger], facts: RunFacts) -> None:
        """Start each of them."""
        for logger in loggers:
            self._loggers.append(logger)
            self._call(logger, lambda logger=logger: logger.start(facts))  # type: ignore[misc]

    def event(self, event: Event) -> None:
        """Tell each of them."""
        for logger in tuple(self._loggers):
            self._call(logger, lambda logger=logger: logger.event(event))  # type: ignore[misc]

    def artifacts_in(self, folder: Path) -> Callable[[str, Any, int], None]:
        """What writes an artifact into `folder`, and tells each logger that shows such things."""

        def save(name: str, value: Any, step: int) -> None:
            path = artifacts.write(folder, name, value, step)
            for logger in tuple(self._loggers):
                if show := getattr(logger, "artifact", None):
                    self._call(logger, lambda show=show: show(step, name, value, path))  # type: ignore[misc]

        return save

    def end(self, result: Result | None) -> None:
        """End each of them, the last one first; whatever they raise, all of them."""
        while self._loggers:
            logger = self._loggers[-1]
            try:
                self._call(logger, lambda logger=logger: logger.end(result))  # type: ignore[misc]
            except OSError as error:
                log.error("%s did not end", type(logger).__name__, exc_info=error)
            if logger in self._loggers:
                self._loggers.remove(logger)

    def _call(self, logger: Logger, call: Callable[[], None]) -> None:
        try:
            call()
        except (BrokenPipeError, SystemExit):
            # `mlorun ... | head -1`: nobody reads standard output any more, which rich makes an exit; the run goes on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError:
            raise
        except Exception as error:
            self._loggers.remove(logger)
            log.warning(
                "%s raised %s: %s. It is left out; the run goes on", type(logger).__name__, type(error).__name__, error
            )
            log.error("what %s raised", type(logger).__name__, exc_info=error)


@contextmanager
def following(loggers: Sequence[Logger], facts: RunFacts) -> Iterator[Listeners]:
    """Start every logger; end with a result by `end`, or else they end without one."""
    listeners = Listeners()
    try:
        listeners.start(loggers, facts)
        yield listeners
    finally:
        listeners.end(None)
