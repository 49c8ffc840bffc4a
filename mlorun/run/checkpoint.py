"""Checkpoints that are whole or refused, and the hash that says two runs ended in the same bits.

A checkpoint has its step and the beginning of its SHA-256 in its name, step-00000500-3f9a1c07d2b84e65.pt: one rename
makes it there or not, and no other file can disagree with it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import nn

from mlorun.errors import RunError
from mlorun.run.atomic import atomic_file, pointed

log = logging.getLogger("mlorun.run")

_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")
_LENGTH = 16  # of the hash in a name


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, or not one of ours."""


def save(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write `state` (containers, numbers, text, tensors) to a file of its own in `folder`; its path.

    Raises OSError where there is no space, and leaves nothing then.
    """
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    path = folder / f"step-{step:08d}.pt"

    def name() -> str:
        return f"step-{step:08d}-{digest.hexdigest()[:_LENGTH]}.pt"

    with atomic_file(path, name) as file:
        hashing = _Hashing(file, digest)
        try:
            torch.save(dict(state), cast(BinaryIO, hashing))
        except RuntimeError as error:
            # torch tells of its own offsets where the file told of a full disk
            raise (hashing.failed or error) from None
    return path.with_name(name())


def load(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The state in `path`, its hash checked first: torch.load itself misses most single-bit flips.

    path   a checkpoint, or a pointer to one (final.pt, best.pt)

    Raises CheckpointError where it is missing, damaged or holds anything but plain data.
    """
    path = Path(path)
    try:
        if path.is_symlink() or (_NAME.fullmatch(path.name) is None and path.stat().st_size < 1000):
            path = pointed(path)
        match = _NAME.fullmatch(path.name)
        if match is None:
            raise CheckpointError(
                "this is not the name of a checkpoint", where=str(path), fix="step-NUMBER-HASH.pt, as it was written"
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if not digest.startswith(match[2]):
                raise CheckpointError(
                    "the checkpoint is damaged",
                    where=str(path),
                    seen=f"sha256 {digest[:_LENGTH]}, in its name {match[2]}",
                    fix="use an earlier checkpoint",
                )
            file.seek(0)
            _refuse_compressed(file, path)
            state = torch.load(file, map_location=map_location, weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError("there is no such checkpoint", where=str(path)) from error
    except (Exception, RecursionError) as error:  # a file with the right hash may still hold anything
        first = next(iter(str(error).splitlines()), "")
        seen = f"{type(error).__name__}: {first}"
        raise CheckpointError("the checkpoint cannot be read", where=str(path), seen=seen) from error
    if not isinstance(state, dict):
        raise CheckpointError("the checkpoint holds no state", where=str(path), seen=type(state).__name__)
    return state


def why_not_held(state: Any) -> str | None:
    """What keeps a checkpoint from holding this: it is written to memory, and read as `load` reads. None where nothing
    does."""
    memory = io.BytesIO()
    try:
        torch.save(state, memory)
        memory.seek(0)
        torch.load(memory, weights_only=True)
    except Exception as error:  # of pickling, any
        named = re.search(r"GLOBAL (\S+)", str(error))
        return named[1] if named else next(iter(str(error).splitlines()), type(error).__name__)
    return None


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint."""
    match = _NAME.fullmatch(path.name)
    assert match is not None, f"{path} is no checkpoint"
    return int(match[1])


def saved(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest step first; of one step, the one written last first."""
    paths = [path for path in folder.glob("step-*.pt") if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(paths, key=lambda path: (step_of(path), path.stat().st_mtime_ns), reverse=True)


def good_ones(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Path and state of every checkpoint that is whole, newest first; each damaged one is named in the log."""
    for path in saved(folder):
        try:
            state = load(path)
        except CheckpointError as error:
            log.warning("%s: %s; an earlier one is used", error.message, path)
            continue
        yield path, state


def params_sha256(modules: Mapping[str, nn.Module]) -> str:
    """A hash of every parameter and buffer, bit by bit; the same on whatever device they are."""
    digest = hashlib.sha256()
    for name in sorted(modules):
        module = modules[name]
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        for key in sorted(tensors):
            tensor = tensors[key].detach().cpu().contiguous()
            digest.update(repr((name, key, str(tensor.dtype), tuple(tensor.shape))).encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Hashing:
    """A file that hashes what is written to it, so that a checkpoint is not read again to be hashed.

    failed   the OSError of a write, which torch would hide
    """

    def __init__(self, file: BinaryIO, digest: Any) -> None:
        self.failed: OSError | None = None
        self._file = file
        self._digest = digest

    def write(self, data: bytes) -> int:
        try:
            written = self._file.write(data)
        except OSError as error:
            self.failed = error
            raise
        self._digest.update(data)
        return written

    def flush(self) -> None:
        self._file.flush()


def _refuse_compressed(file: BinaryIO, path: Path) -> None:
    """Raise CheckpointError for an archive that unpacks to more than it holds."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > size:
            raise CheckpointError("the checkpoint unpacks to more than its size", where=str(path))
    file.seek(0)
