"""Endless, seeded, resumable batches: order is a function of (seed, name, epoch), state is two integers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mlorun.data.batches import Batch, Split, length, map_tensors, on_device, require_positive, to_device
from mlorun.data.loader import Fetch, loaded_batches
from mlorun.errors import DataError
from mlorun.run.seeds import derive_seed


class Stream(Protocol):
    """Batches on the device, without end.

    `epoch` counts the epochs completed; `position` is the index, within the epoch, of the batch that comes
    next, always below `batches_per_epoch`: after an epoch's last batch the state is (epoch + 1, 0).
    """

    epoch: int
    position: int

    @property
    def batches_per_epoch(self) -> int: ...
    def __iter__(self) -> Iterator[Batch]: ...
    def __next__(self) -> Batch: ...
    def state_dict(self) -> dict[str, int]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...
    def at(self, state: Mapping[str, Any]) -> Batch:
        """The batch that came, or will come, next in this state; the stream stays where it is."""


def stream(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    name: str,
    device: torch.device,
    workers: int = 0,
    pin_memory: bool = True,
) -> Stream:
    """The stream of the problem `name`: in memory for a nesting of tensors, by a loader for a Dataset.

    `workers` and `pin_memory` concern a loader alone; pinning is done only for a CUDA device.
    Raises DataError where the split cannot fill one batch.
    """
    where = f"problems.{name}.batch_size"
    require_positive(where, batch_size)
    size = length(split)
    if batch_size > size:
        raise DataError(
            f"the batch of {name} is larger than its split",
            where=where,
            seen=f"batch_size {batch_size}, but the split holds {size} samples",
            fix=f"{where}={size} or less, or a larger split",
        )
    order = _Order(size, batch_size, seed, name)
    if isinstance(split, Dataset):
        return LoaderStream(split, order, device, workers=workers, pin_memory=pin_memory)
    return MemoryStream(split, order, device)


class _Order:
    """Which rows make which batch. What an incomplete last batch would hold is dropped for that epoch."""

    def __init__(self, size: int, batch_size: int, seed: int, name: str) -> None:
        self.size, self.batch_size, self.seed, self.name = size, batch_size, seed, name
        self.batches_per_epoch = size // batch_size

    def rows(self, epoch: int) -> Tensor:
        """A permutation of all rows, drawn on the CPU: the same on every device."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.name, str(epoch)))
        return torch.randperm(self.size, generator=generator)

    def fetches(self, epoch: int, position: int) -> Iterator[Fetch]:
        """From there on, without end: each batch's own seed, and its rows."""
        while True:
            rows = self.rows(epoch).tolist()
            for index in range(position, self.batches_per_epoch):
                batch_seed = derive_seed(self.seed, "batch", self.name, str(epoch), str(index))
                yield batch_seed, rows[index * self.batch_size : (index + 1) * self.batch_size]
            epoch, position = epoch + 1, 0

    def checked(self, state: Mapping[str, Any]) -> tuple[int, int]:
        """(epoch, position) of a saved state. Raises DataError where this stream can have no such state."""
        epoch, position = state.get("epoch"), state.get("position")
        if (
            not (isinstance(epoch, int) and isinstance(position, int))
            or epoch < 0
            or not 0 <= position < self.batches_per_epoch
        ):
            raise DataError(
                f"the saved place in the data of {self.name} does not exist",
                where=f"stream of {self.name}",
                seen=f"{dict(state)}, but an epoch has {self.batches_per_epoch} batches",
                fix="resume with the data and the batch size that the run began with",
            )
        return epoch, position


class MemoryStream:
    """A split that lives on the device: a batch is one index_select per tensor, without waiting for it."""

    def __init__(self, split: Split, order: _Order, device: torch.device) -> None:
        self.epoch = 0
        self.position = 0
        self.batches_per_epoch = order.batches_per_epoch
        self.split = on_device(split, device)
        self._order = order
        self._device = device
        self._rows: Tensor | None = None  # this epoch's permutation, on the device

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._rows is None:
            self._rows = self._permutation(self.epoch)
        batch = self._gather(self._rows, self.position)
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position, self._rows = self.epoch + 1, 0, None
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.position = self._order.checked(state)
        self._rows = None

    def at(self, state: Mapping[str, Any]) -> Batch:
        epoch, position = self._order.checked(state)
        same = epoch == self.epoch and self._rows is not None
        return self._gather(self._rows if same else self._permutation(epoch), position)  # type: ignore[arg-type]

    def _gather(self, order: Tensor, position: int) -> Batch:
        rows = order[position * self._order.batch_size : (position + 1) * self._order.batch_size]
        return map_tensors(lambda tensor: tensor.index_select(0, rows), self.split)

    def _permutation(self, epoch: int) -> Tensor:
        rows = self._order.rows(epoch)
        if self._device.type == "cuda":
            # pinned, or the copy would wait for all work under way
            rows = rows.pin_memory()
        return rows.to(self._device, non_blocking=True)


class LoaderStream:
    """A Dataset read by workers ahead of time, in the order and with the state of a MemoryStream."""

    def __init__(
        self, dataset: Dataset[Any], order: _Order, device: torch.device, *, workers: int, pin_memory: bool
    ) -> None:
        self.epoch = 0
        self.position = 0
        self.batches_per_epoch = order.batches_per_epoch
        self._dataset = dataset
        self._order = order
        self._device = device
        self._workers = workers
        self._pin_memory = pin_memory and device.type == "cuda"
        self._batches: Iterator[Batch] | None = None  # one loader for all epochs: no pause between two

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = loaded_batches(
                self._dataset,
                self._order.fetches(self.epoch, self.position),
                workers=self._workers,
                pin_memory=self._pin_memory,
            )
        batch = to_device(next(self._batches), self._device)
        self.position += 1
        if self.position == self.batches_per_epoch:
            self.epoch, self.position = self.epoch + 1, 0
        return batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.position = self._order.checked(state)
        self._batches = None

    def at(self, state: Mapping[str, Any]) -> Batch:
        fetches = self._order.fetches(*self._order.checked(state))
        one = loaded_batches(self._dataset, iter([next(fetches)]), workers=0, pin_memory=False)
        return to_device(next(one), self._device)
