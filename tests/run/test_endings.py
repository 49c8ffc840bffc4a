"""What ends a run, as an error with an exit code of its own."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from mlorun.run import endings

HERE = Path("folder"), Path("folder/log.txt")


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
    ids=lambda cause: str(cause)[:30] or type(cause).__name__,
)  # fmt: skip
def test_no_memory_left_is_exit_code_5(cause: Exception) -> None:
    error = endings.named(cause, *HERE)
    assert (error.exit_code, endings.status(error), error.message) == (5, "out_of_memory", "out of memory")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_disk_left_is_exit_code_5(number: int) -> None:
    error = endings.named(OSError(number, "full"), *HERE)
    assert (error.exit_code, endings.status(error), error.message) == (5, "out_of_disk", "out of disk")


@pytest.mark.parametrize("cause", [RuntimeError("a size does not fit"), OSError(errno.EIO, "broken"), SystemExit(0)])
def test_anything_else_is_a_failure(cause: BaseException) -> None:
    error = endings.named(cause, *HERE)
    assert (error.exit_code, endings.status(error)) == (1, "failed")
