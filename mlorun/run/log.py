"""What a run says, by the logger "mlorun" or a Python warning, to log.txt and elsewhere. No torch."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlorun.run.secrets import masked

# what a run has to say, and what Python's `warnings` say meanwhile
NAMES = ("mlorun", "py.warnings")


@contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    """Send every message of INFO or above to `handler`, and none to the root logger, while the block runs."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        # the root logger may write to the very terminal that a live view owns
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Append every message, warning and traceback to `path` while the block runs."""
    handler = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    handler.handleError = lambda record: None  # type: ignore[method-assign]  # a full disk must not end a run from here
    handler.setFormatter(_Masked("%(asctime)s %(levelname)-7s %(message)s"))
    logging.captureWarnings(True)
    try:
        with listening(handler):
            yield
    finally:
        logging.captureWarnings(False)
        handler.close()


class _Masked(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class Buffer:
    """Messages kept until everybody is there to hear them: log.txt listens before the console does."""

    def __init__(self) -> None:
        self._keeper = _Keeper()

    def open(self) -> None:
        """Keep messages from now on."""
        logging.getLogger("mlorun").addHandler(self._keeper)

    def flush(self) -> None:
        """Keep no more, and pass everything kept on to the handlers that listen by now and did not when it came."""
        logger = logging.getLogger("mlorun")
        logger.removeHandler(self._keeper)
        kept, self._keeper.kept = self._keeper.kept, []
        for record, heard in kept:
            if not logger.handlers:
                logger.handle(record)  # whoever listens above
            for handler in logger.handlers:
                if handler not in heard and record.levelno >= handler.level:
                    handler.handle(record)


# not Buffer itself: a Handler has a `flush` of its own
class _Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[logging.LogRecord, list[logging.Handler]]] = []  # and who heard it at once

    def emit(self, record: logging.LogRecord) -> None:
        self.kept.append((record, list(logging.getLogger("mlorun").handlers)))


@contextmanager
def buffered() -> Iterator[Buffer]:
    """Keep the messages from before the run folder exists; what is not flushed goes out at the end.

    Nobody else gets them meanwhile, or they would come twice.
    """
    logger = logging.getLogger("mlorun")
    level, propagate = logger.level, logger.propagate
    buffer = Buffer()
    buffer.open()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield buffer
    finally:
        logger.setLevel(level)
        logger.propagate = propagate
        buffer.flush()
