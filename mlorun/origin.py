"""What the bits of a run depend on beside its config: code, data, versions, threads; and what has changed since."""

from __future__ import annotations

import hashlib
import inspect
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.data.batches import map_tensors
from mlorun.run.device import describe
from mlorun.run.provenance import versions

_LIBRARIES = ("torch", "torchvision", "mlorun.core", "builtins")


def origin(config: DictConfig, engine: Engine) -> dict[str, Any]:
    """Versions, device, threads, a hash of mlorun and of every file with a class of the recipe, a sum of the data."""
    return {
        "versions": versions(),
        "device": describe(engine.device),
        "threads": torch.get_num_threads(),
        "sources": {"mlorun": _package_hash(), **{name: _hash(path) for name, path in sorted(_sources(engine))}},
        "data": _data(engine),
    }


def drift(then: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line for each thing that is not as it was: "versions.torch: 2.11.0, now 2.12.0"."""
    lines = []
    for key in sorted({*then, *now}):
        before, after = then.get(key), now.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += drift(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before}, now {after}")
    return lines


def _sources(engine: Engine) -> set[tuple[str, Path]]:
    """Module and file of every class that a recipe brings; libraries are known by their versions."""
    objects = [one for problem in engine.problems.values() for one in (problem, *problem.module.modules())]
    names = {type(one).__module__ for one in objects}
    files = {name: inspect.getsourcefile(sys.modules[name]) for name in names if name in sys.modules and _is_own(name)}
    return {(name, Path(file)) for name, file in files.items() if file is not None}


def _is_own(name: str) -> bool:
    return not any(name == library or name.startswith(f"{library}.") for library in _LIBRARIES)


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _package_hash() -> str:
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        if "configs" not in path.parts and "recipes" not in path.parts:
            digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _data(engine: Engine) -> dict[str, str]:
    """A sum over all numbers of every in-memory split that a problem trains on or is evaluated on."""
    splits = {f"{name} trains": problem.stream for name, problem in engine.problems.items()}
    held = {name: getattr(stream, "split", None) for name, stream in splits.items()}
    held |= {f"{one.prefix} of {one.problem}": one.split for one in engine.evaluations}
    sums: dict[int, str] = {}  # problems share splits
    return {
        name: sums.setdefault(id(split), _sum(split)) if id(split) not in sums else sums[id(split)]
        for name, split in held.items()
        if split is not None
    }


def _sum(split: Any) -> str:
    total = 0
    for tensor in _tensors(split):
        bits = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(bits.data, zlib.crc32(repr((tensor.dtype, tuple(tensor.shape))).encode(), total))
    return f"{total:08x}"


def _tensors(split: Any) -> Iterator[Tensor]:
    tensors: list[Tensor] = []
    try:
        map_tensors(tensors.append, split)
    except Exception:  # a data set that makes its samples when it is asked
        return
    yield from tensors
