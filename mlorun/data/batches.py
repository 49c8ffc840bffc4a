"""Splits and batches of any nesting: their length, their tensors, and a pass over them in order.

A nesting is a tensor, or a tuple, named tuple, list or mapping of nestings. A split is a nesting of tensors
that share their first dimension, or a `torch.utils.data.Dataset`. A list holds columns, never samples.
"""

from __future__ import annotations

import logging
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sized
from operator import itemgetter
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from mlorun.data.loader import loaded_batches
from mlorun.errors import DataError

log = logging.getLogger("mlorun.data")

_NAMED = "fields of a named tuple"

Batch: TypeAlias = Any  # a nesting of tensors; what comes from a Dataset may hold other leaves, e.g. strings
Split: TypeAlias = Any  # a nesting of tensors, or a Dataset


def map_tensors(fn: Callable[[Tensor], Any], batch: Batch) -> Any:
    """The same nesting with fn of every tensor; a mapping comes back as a dict, other leaves as they are."""
    if isinstance(batch, Tensor):
        return fn(batch)
    if isinstance(batch, (tuple, list)):
        mapped = [map_tensors(fn, part) for part in batch]
        if type(batch) is tuple:
            return tuple(mapped)
        # a named tuple takes its fields one by one
        return type(batch)(*mapped) if isinstance(batch, tuple) else mapped
    if isinstance(batch, Mapping):
        return {key: map_tensors(fn, part) for key, part in batch.items()}
    return batch


def packed(batch: Batch) -> Any:
    """The same nesting with every named tuple as a mapping of its fields, which a checkpoint can hold."""
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return {_NAMED: list(batch._fields), "values": [packed(part) for part in batch]}
    if isinstance(batch, (tuple, list)):
        return type(batch)(packed(part) for part in batch)
    if isinstance(batch, Mapping):
        return {key: packed(part) for key, part in batch.items()}
    return batch


def unpacked(batch: Any) -> Batch:
    """The inverse of `packed`; a named tuple comes back with its fields, in a class of its own."""
    if isinstance(batch, dict) and _NAMED in batch:
        return namedtuple("Batch", batch[_NAMED])(*(unpacked(part) for part in batch["values"]))
    if isinstance(batch, (tuple, list)):
        return type(batch)(unpacked(part) for part in batch)
    if isinstance(batch, dict):
        return {key: unpacked(part) for key, part in batch.items()}
    return batch


def batch_length(batch: Batch) -> int:
    """How many samples a batch holds: the first dimension of its first tensor."""
    for _, leaf in _leaves(batch, ""):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return leaf.shape[0]
    raise DataError("a batch holds no tensor with a first dimension", seen=type(batch).__name__)


def require_samples(name: str, split: Split) -> None:
    """Raise DataError for a split without samples, or one that `length` cannot count; warn of numbers not finite."""
    if length(split, f"the split {name}") == 0:
        raise DataError(f"the split {name} has no samples", where="data", fix="see what the data builder leaves in it")
    if isinstance(split, Dataset):
        return
    for path, leaf in _leaves(split, f"the split {name}"):
        if leaf.is_floating_point() and not torch.isfinite(leaf).all():
            rows = int((~torch.isfinite(leaf)).reshape(len(leaf), -1).any(1).sum())
            log.warning("%s: NaN or infinity in %s of %s samples", path, f"{rows:,}", f"{len(leaf):,}")


def length(split: Split, name: str = "split") -> int:
    """How many samples a split holds. Raises DataError where its parts disagree, or it cannot be counted."""
    if isinstance(split, Dataset):
        if isinstance(split, Sized) and not isinstance(split, IterableDataset):
            return len(split)
        raise DataError(
            "a dataset without a length or an index cannot be shuffled",
            seen=type(split).__name__,
            fix="give it __len__ and __getitem__ (a map-style dataset)",
        )
    sizes: dict[str, int] = {}
    for path, leaf in _leaves(split, name):
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            raise DataError(
                "a split is a nesting of tensors that share their first dimension, or a Dataset",
                where=path,
                seen="a tensor without dimensions" if isinstance(leaf, Tensor) else type(leaf).__name__,
                fix="make it a tensor with one row for each sample, e.g. torch.as_tensor(...)",
            )
        sizes[path] = leaf.shape[0]
    if not sizes:
        raise DataError("a split holds no tensor", seen=type(split).__name__)
    if len(set(sizes.values())) > 1:
        raise DataError(
            "the tensors of a split differ in length",
            seen=", ".join(f"{path}: {size}" for path, size in sizes.items()),
            fix="give every tensor one row for each sample",
        )
    return next(iter(sizes.values()))


def on_device(split: Split, device: torch.device) -> Split:
    """A split in memory, moved to the device (no copy where it is there already); a Dataset as it is."""
    if isinstance(split, Dataset):
        return split
    return map_tensors(lambda tensor: tensor.to(device).contiguous(), split)


def ordered_batches(split: Split, batch_size: int, device: torch.device, *, workers: int = 0) -> Iterator[Batch]:
    """Every sample once, in order, the last batch as short as it must be. Batches in memory are views."""
    size = length(split)
    require_positive("evaluation_batch_size", batch_size)
    if isinstance(split, Dataset):
        # seeded by the rows alone: random transforms must not make one evaluation differ from the next
        starts = range(0, size, batch_size)
        plan = ((start, range(start, min(start + batch_size, size))) for start in starts)
        for loaded in loaded_batches(split, plan, workers=workers, pin_memory=device.type == "cuda"):
            yield to_device(loaded, device)
        return
    resident = on_device(split, device)
    for start in range(0, size, batch_size):
        yield map_tensors(itemgetter(slice(start, start + batch_size)), resident)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """A loaded batch on the device; the copy overlaps with computation where the batch is pinned."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), batch)


def require_positive(name: str, value: object) -> None:
    """Raise DataError unless the value is a whole number of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DataError(f"{name} must be a whole number of at least 1", where=name, seen=repr(value))


def _leaves(nesting: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(nesting, (tuple, list)):
        for index, part in enumerate(nesting):
            yield from _leaves(part, f"{path}[{index}]")
    elif isinstance(nesting, Mapping):
        for key, part in nesting.items():
            yield from _leaves(part, f"{path}[{key!r}]")
    else:
        yield path, nesting
