"""Labels to disjoint sets of rows with equal classes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.errors import DataError
from mlorun.run.seeds import derive_seed


def balanced_split(labels: Tensor, *, seed: int, per_class: Mapping[str, int]) -> dict[str, Tensor]:
    """Disjoint, ascending indices into labels: so many of each class for each name, e.g. {"test": 50}, in this order.

    One seed gives a name the same rows whatever comes after it. Raises DataError for a class that holds too few.
    """
    for name, count in per_class.items():
        require_positive(f"data.{name}_per_class", count)
    counts, needed = torch.bincount(labels).tolist(), sum(per_class.values())
    if min(counts) < needed:
        raise DataError(
            "a class has too few images for these splits",
            where=", ".join(f"data.{name}_per_class" for name in per_class),
            seen=f"{needed} images per class, but class {counts.index(min(counts))} has {min(counts)}",
        )
    parts: dict[str, list[Tensor]] = {name: [] for name in per_class}
    for label in range(len(counts)):
        rows = torch.nonzero(labels == label).flatten()
        generator = torch.Generator().manual_seed(derive_seed(seed, "balanced", str(label)))
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for name, count in per_class.items():
            parts[name].append(rows[:count])
            rows = rows[count:]
    return {name: torch.cat(rows).sort().values for name, rows in parts.items()}
