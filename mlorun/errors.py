"""One exception tree for everything a user can meet and mend.

MlorunError                 what is wrong, where, what was seen, how to fix it; and the exit code
├── ConfigError        2    the command or the config is wrong; nothing was run
│   ├── ConfigErrors   2    several of them, reported together
│   ├── GraphError     2    the problems and dependencies do not make a program
│   ├── DataError      2    a data set, a split or a batch size that cannot be had
│   └── DeviceError    2    a device or a precision that this machine lacks
├── RunError           1    the run failed
│   ├── NonFiniteError 4    a loss became NaN or infinite
│   └── ResourceError  5    out of memory or disk
└── FolderInUseError   6    another process writes in the run folder
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class MlorunError(Exception):
    """Base of all. `message` is one sentence; `where`, `seen` and `fix` are each one line or None."""

    exit_code: int = 1

    def __init__(
        self, message: str, *, where: str | None = None, seen: str | None = None, fix: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.seen = seen
        self.fix = fix

    def __str__(self) -> str:
        extra = [f"{label}: {text}" for label, text in self.details() if text]
        return "\n".join([self.message, *extra])

    def details(self) -> tuple[tuple[str, str | None], ...]:
        """The lines below the message, in the order they are shown."""
        return (("where", self.where), ("seen", self.seen), ("fix", self.fix))


class ConfigError(MlorunError):
    """The command or the config is wrong; nothing was run."""

    exit_code = 2


class ConfigErrors(ConfigError):
    """Every fault of a config, together. `faults` is never empty."""

    def __init__(self, faults: Sequence[ConfigError]) -> None:
        self.faults = tuple(faults)
        count = len(self.faults)
        super().__init__(f"the config has {count} fault{'s' if count > 1 else ''}")

    def __str__(self) -> str:
        return "\n\n".join(str(fault) for fault in self.faults)


def together(faults: Sequence[ConfigError]) -> ConfigError:
    """Several faults as one error; a single one as it is."""
    return faults[0] if len(faults) == 1 else ConfigErrors(faults)


def said_once(faults: Iterable[ConfigError]) -> list[ConfigError]:
    """Faults that differ in nothing but their places as one, with all places."""
    places: dict[ConfigError, dict[str, None]] = {}
    kept: dict[tuple[str, str | None, str | None], ConfigError] = {}
    for fault in faults:
        first = kept.setdefault((fault.message, fault.seen, fault.fix), fault)
        places.setdefault(first, {}).update({fault.where: None} if fault.where else {})
    for fault, found in places.items():
        fault.where = ", ".join(found) or None
    return list(places)


def faults_in(error: ConfigError) -> tuple[ConfigError, ...]:
    """Every fault that an error stands for."""
    return error.faults if isinstance(error, ConfigErrors) else (error,)


class GraphError(ConfigError):
    """The problems and their dependencies do not make a program."""


class DataError(ConfigError):
    """A data set, a split or a batch size that cannot be had."""


class DeviceError(ConfigError):
    """A device or a precision that this machine lacks."""


class FolderInUseError(MlorunError):
    """Another process writes in the run folder."""

    exit_code = 6


class RunError(MlorunError):
    """The run started and failed."""


class NonFiniteError(RunError):
    """A loss became NaN or infinite."""

    exit_code = 4


class ResourceError(RunError):
    """Out of memory or disk."""

    exit_code = 5


def nearest(name: object, known: Iterable[str]) -> str | None:
    """The known name closest to a mistyped one, which YAML may have read as a number; None where nothing is near."""
    matches = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """A fix line: the nearest right name first, then all of them."""
    options = sorted(known)
    match = nearest(name, options)
    listing = f"known: {', '.join(options)}" if options else "nothing is known here"
    return f"did you mean {match}? ({listing})" if match else listing
