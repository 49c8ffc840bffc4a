"""Files that are wholly there or not at all: temporary name, sync, rename, sync the folder. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mlorun.run.strict_json import encode

_DRAFT = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def atomic_file(path: Path, name: Callable[[], str] | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well, and vanishes when it does not.

    name   its last name, asked for when all is written, where that depends on the content
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path if name is None else path.with_name(name()))
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def remove_drafts(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Only for who alone writes there."""
    for path in folder.iterdir():
        if _DRAFT.fullmatch(path.name):
            path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """`data` as the whole content of `path`."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, closed by a newline. What UTF-8 cannot encode is written as an escape."""
    write_bytes(path, (encode(value, indent=2) + "\n").encode(errors="backslashreplace"))


def point(pointer: Path, name: str) -> None:
    """Make `pointer` lead to its sibling `name`, in one rename. `pointed` reads it."""
    draft = pointer.with_name(f".{pointer.name}.{os.getpid()}.tmp")
    try:
        try:
            draft.symlink_to(name, target_is_directory=pointer.with_name(name).is_dir())
        except (OSError, NotImplementedError):
            # file systems and accounts without symlinks get a text file that says the same
            draft.write_text(name + "\n", encoding="utf-8")
        os.replace(draft, pointer)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def pointed(pointer: Path) -> Path:
    """Where a pointer leads."""
    name = os.readlink(pointer) if pointer.is_symlink() else pointer.read_text(encoding="utf-8").strip()
    return pointer.with_name(name)


def sync(path: Path) -> None:
    """Make what was written to this file survive a power cut."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut. Windows cannot open a folder, and does this by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
