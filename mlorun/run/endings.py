"""The error that a person is shown for whatever ended a run."""

from __future__ import annotations

import errno
from pathlib import Path

import torch

from mlorun.errors import ConfigError, MlorunError, NonFiniteError, ResourceError, RunError
from mlorun.run.events import Status

_OURS = Path(__file__).parents[1]  # mlorun
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# torch raises a plain RuntimeError where the host has no memory left
_NO_MEMORY = ("DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough memory")


def named(cause: BaseException, folder: Path, log: Path) -> MlorunError:
    """`cause` as one of ours, with the cause in it.

    folder, log   of the run: where a disk is full, and where the traceback is
    """
    if isinstance(cause, MlorunError):
        return cause
    first = next(iter(str(cause).splitlines()), "") or type(cause).__name__
    error: MlorunError
    if is_out_of_memory(cause):
        error = ResourceError("out of memory", seen=first, fix="a smaller batch_size, or precision=bf16")
    elif is_out_of_disk(cause):
        error = ResourceError(
            "out of disk", where=str(getattr(cause, "filename", None) or folder), seen=first, fix="free some space"
        )
    elif isinstance(cause, SystemExit):
        error = RunError(
            f"the recipe ended the process: sys.exit({cause.code!r})",
            where=_place(cause),
            fix="raise an error instead, or engine.stop(reason) in a callback",
        )
    else:
        message, fix = f"{type(cause).__name__}: {first}", f"the full traceback is in {log}"
        error = RunError(message, where=_place(cause), seen=notes(cause), fix=fix)
    error.__cause__ = cause
    return error


def of_config(cause: Exception) -> MlorunError:
    """`cause` as the fault of a config of which nothing was run."""
    if isinstance(cause, MlorunError):
        return cause
    first = next(iter(str(cause).splitlines()), "")
    message = f"{type(cause).__name__}: {first}".rstrip(": ")
    return ConfigError(
        message, where=_place(cause), seen=notes(cause), fix="correct it there, or choose another option"
    )


def notes(cause: BaseException) -> str | None:
    """What was added to an error on its way up: the problem, the step."""
    return ", ".join(getattr(cause, "__notes__", ())) or None


def status(error: MlorunError) -> Status:
    """Of a run that this error ended."""
    if isinstance(error, NonFiniteError):
        return "nonfinite"
    if isinstance(error, ResourceError):
        return "out_of_disk" if isinstance(error.__cause__, OSError) else "out_of_memory"
    return "failed"


def is_out_of_disk(cause: BaseException) -> bool:
    """Whether no space, no quota, or no size of a file is left."""
    return isinstance(cause, OSError) and cause.errno in _FULL


def is_out_of_memory(cause: BaseException) -> bool:
    """Whether the host or the device has no memory left."""
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(cause, RuntimeError) and any(text in str(cause) for text in _NO_MEMORY)


def _place(cause: BaseException) -> str | None:
    of_recipe, own = _places(cause)
    return of_recipe or own


def place_in_recipe(cause: BaseException) -> str | None:
    """File, line and function of the deepest frame of a recipe; None where there is none."""
    return _places(cause)[0]


def _places(cause: BaseException) -> tuple[str | None, str | None]:
    """The deepest frames of a recipe and of mlorun's own."""
    of_recipe = own = None
    trace = cause.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        file, place = Path(code.co_filename), f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        if _OURS in file.parents and _OURS / "recipes" not in file.parents:
            own = place
        elif _OURS in file.parents or not ("site-packages" in code.co_filename or code.co_filename.startswith("<")):
            of_recipe = place
        trace = trace.tb_next
    return of_recipe, own
