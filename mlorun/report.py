"""An error as one clear screen: what, where, what was seen, how to fix it. No torch."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from tempfile import NamedTemporaryFile

from mlorun.errors import ConfigErrors, MlorunError, RunError
from mlorun.run.secrets import masked

_LONGEST = 1_000  # characters of a line


def render(error: MlorunError) -> str:
    """The lines of the screen; several faults one below the other."""
    faults = error.faults if isinstance(error, ConfigErrors) else (error,)
    blocks = []
    for fault in faults:
        lines = [f"error: {fault.message}"]
        lines += [f"  {label:5s}  {_short(text)}" for label, text in fault.details() if text]
        blocks.append("\n".join(lines))
    if len(faults) > 1:
        blocks.append(f"{len(faults)} faults, nothing was run")
    return printable(masked("\n\n".join(blocks)))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def printable(text: str) -> str:
    """Text without marks that a terminal acts on or that hide: escape sequences, NUL, right-to-left overrides."""
    return "".join(mark if mark.isprintable() or mark == "\n" else ascii(mark)[1:-1] for mark in text)


def show(error: MlorunError) -> None:
    """Print the screen to standard error, in colour on a terminal."""
    show_rendered(render(error))


def show_rendered(screen_of_error: str) -> None:
    """`show`, for an error that `render` has made text of."""
    from rich.console import Console
    from rich.text import Text

    screen = Console(stderr=True, highlight=False, soft_wrap=True)
    text = Text(screen_of_error)
    text.highlight_regex(r"(?m)^error: ", "bold red")
    text.highlight_regex(r"(?m)^  (where|seen|fix) ", "cyan")
    sys.stdout.flush()
    screen.print(text)


def named(error: Exception, folder: Path | None = None) -> MlorunError:
    """An error that nobody foresaw, in one line; its traceback goes to a file, in `folder` if given."""
    with NamedTemporaryFile("w", prefix="mlorun-", suffix=".log", dir=folder, delete=False) as file:
        traceback.print_exception(error, file=file)
    first = next(iter(str(error).splitlines()), "")
    return RunError(f"{type(error).__name__}: {first}".rstrip(": "), fix=f"the full traceback is in {file.name}")
