"""One writer per run folder: a lock that dies with its process. No torch."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from mlorun.errors import ConfigError, FolderInUseError

if os.name == "nt":
    import msvcrt
else:
    import fcntl

NAME = ".lock"
_held: set[Path] = set()  # by this process: a record lock keeps out other processes, and not ourselves


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only writer of `folder`. Raises FolderInUseError, which names the other one.

    The system takes the lock back when the process ends, however it ends; workers that it has forked do not keep it.
    The file stays: to remove it would let two processes hold locks of one name.
    """
    key = folder.resolve()
    if key in _held:
        raise in_use(folder)
    descriptor = _opened(folder)
    if not _take(descriptor):
        os.close(descriptor)
        raise in_use(folder)
    _held.add(key)
    try:
        who = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat("T", "seconds")}
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(who).encode())
        yield
    finally:
        _held.discard(key)
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Whether a living process writes in `folder`."""
    if folder.resolve() in _held:
        return True  # to open and close the file would release the lock
    try:
        descriptor = os.open(folder / NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _take(descriptor)
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int:
    try:
        return os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT):
            raise
        raise ConfigError(
            "the run folder cannot be written to",
            where=str(folder),
            seen=error.strerror,
            fix="copy it to a place that can be written to, and resume it there",
        ) from error


def _take(descriptor: int) -> bool:
    try:
        if os.name == "nt":
            # a byte past the text, which others may read meanwhile
            os.lseek(descriptor, 1 << 20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined, unused-ignore]
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def in_use(folder: Path) -> FolderInUseError:
    """The error that names the process which writes in `folder`."""
    try:
        who = json.loads((folder / NAME).read_text(encoding="utf-8"))
        seen = f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        seen = "a process that did not say which"
    return FolderInUseError(
        "another process writes in this run folder", where=str(folder), seen=seen, fix="wait for it, or stop it"
    )
