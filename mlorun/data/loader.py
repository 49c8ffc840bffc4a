"""Batches of a Dataset through `torch.utils.data.DataLoader`, each a pure function of its seed and its rows.

Every batch is fetched under its own seed, so that random transforms draw the same numbers with any number of
workers and after a resume, and leave the generators of the process that trains where they were.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

Fetch: TypeAlias = tuple[int, Sequence[int]]  # a batch's seed and its rows


class _Fetched(Dataset[Any]):
    """A dataset whose item is a whole batch. Its key is a Fetch."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __getitem__(self, key: Fetch) -> Any:
        seed, rows = key
        with _seeded(seed):
            return default_collate([self.dataset[row] for row in rows])


def loaded_batches(dataset: Dataset[Any], plan: Iterable[Fetch], *, workers: int, pin_memory: bool) -> Iterator[Any]:
    """The plan's batches on the host, in the plan's order. The plan may be endless: it is read just ahead."""
    loader: DataLoader[Any] = DataLoader(
        _Fetched(dataset),
        batch_size=None,  # an item is a batch already
        sampler=plan,
        num_workers=workers,
        pin_memory=pin_memory,
        # without a generator of its own, opening a loader would move the global one
        generator=torch.Generator().manual_seed(0),
    )
    return iter(loader)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """torch (CPU), random and numpy drawn from the seed inside, and as they were afterwards."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    # default_generator, not torch.manual_seed: that one would also reseed the accelerators
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
