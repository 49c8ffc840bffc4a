"""Checkpoints that are whole or refused, and the hash that says two runs ended in the same bits."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import nn

from mlorun.errors import RunError
from mlorun.run.atomic import atomic_file, write_bytes


class CheckpointError(RunError):
    """A checkpoint that is missing, damaged, or not one of ours."""


def sum_path(path: Path) -> Path:
    """Where the hash of final.pt is recorded: final.pt.sha256, in the format of the sha256sum command."""
    return path.with_name(path.name + ".sha256")


def save(path: Path, state: Mapping[str, Any]) -> str:
    """Write `state` (containers, numbers, text, tensors) and its hash beside it; the hash is returned.

    The hash is in place before the checkpoint gets its name: a checkpoint of that name is a complete one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        hashing = _Hashing(file)
        torch.save(dict(state), cast(BinaryIO, hashing))
        digest = hashing.digest()
        write_bytes(sum_path(path), f"{digest}  {path.name}\n".encode())
    return digest


def load(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The state in `path`, its hash checked first: torch.load itself misses most single-bit flips.

    Raises CheckpointError where it is missing, damaged or holds anything but plain data.
    """
    try:
        expected = sum_path(path).read_text(encoding="utf-8").split(maxsplit=1)[0]
        with open(path, "rb") as file:
            digest = _digest(file)
            if digest != expected:
                raise CheckpointError(
                    "the checkpoint is damaged",
                    where=str(path),
                    seen=f"sha256 {digest[:12]}..., recorded {expected[:12]}...",
                    fix="use an earlier checkpoint",
                )
            file.seek(0)
            state: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(
            "the checkpoint is incomplete" if path.exists() else "there is no such checkpoint",
            where=str(path),
            seen=f"{Path(error.filename).name} is missing",
        ) from error
    except (IndexError, UnicodeDecodeError) as error:
        raise CheckpointError("the hash of the checkpoint is unreadable", where=str(sum_path(path))) from error
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            "the checkpoint cannot be read", where=str(path), seen=str(error).splitlines()[0]
        ) from error
    return state


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
    """A file that hashes what is written to it, so that a checkpoint is not read again to be hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def digest(self) -> str:
        return self._digest.hexdigest()


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
