"""Labels of which a share is wrong, and the splits of an experiment on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.errors import DataError
from mlorun.run.seeds import derive_seed

NOISES = ("uniform", "flip")
Splits: TypeAlias = dict[str, tuple[Tensor, ...]]


def corrupted(labels: Tensor, *, seed: int, noise: str, noise_rate: float) -> Tensor:
    """The labels (N,), round(noise_rate N) of them wrong.

    uniform   a wrong label is any of the other classes
    flip      a wrong label is the one class that the seed has chosen for each class (a cycle through all)
    """
    if noise not in NOISES:
        raise DataError("unknown noise", where="data.noise", seen=noise, fix=" or ".join(NOISES))
    if not 0 <= noise_rate < 1:
        raise DataError("the noise rate must lie in [0, 1)", where="data.noise_rate", seen=f"{noise_rate}")
    draw = torch.Generator().manual_seed(derive_seed(seed, "label_noise", noise))
    classes = int(labels.max()) + 1
    rows = torch.randperm(len(labels), generator=draw)[: round(noise_rate * len(labels))]
    cycle = torch.randperm(classes, generator=draw)
    wrong = labels.clone()
    if noise == "uniform":
        wrong[rows] = (labels[rows] + torch.randint(1, classes, (len(rows),), generator=draw)) % classes
    else:
        following = torch.empty_like(cycle)
        following[cycle] = cycle.roll(-1)
        wrong[rows] = following[labels[rows]]
    return wrong


def noisy_splits(
    images: Tensor, labels: Tensor, *, seed: int, sizes: Mapping[str, int], noise: str, noise_rate: float
) -> Splits:
    """Disjoint splits of these sizes, `train` among them, each (images, labels); train's labels corrupted. And of train

    clean     (images, labels) of the samples whose label was kept
    indexed   (images, labels, rows, truth): the row of each sample in train, and its right label, for metrics alone
    union, indexed_union   the same of train and then validation, if there is such a split
    """
    for name, size in sizes.items():
        require_positive(f"data.{name}_size", size)
    if sum(sizes.values()) > len(labels):
        raise DataError(
            "the splits are larger than the data",
            where=", ".join(f"data.{name}_size" for name in sizes),
            seen=f"{sum(sizes.values())} samples of {len(labels)}",
            fix="make one of them smaller",
        )
    draw = torch.Generator().manual_seed(derive_seed(seed, "label_noise", "splits"))
    order = torch.randperm(len(labels), generator=draw)
    parts = dict(zip(sizes, order.split([*sizes.values(), len(labels) - sum(sizes.values())]), strict=False))
    splits: Splits = {name: (images[rows], labels[rows]) for name, rows in parts.items()}
    inputs, truth = splits["train"]
    noisy = corrupted(truth, seed=seed, noise=noise, noise_rate=noise_rate)
    kept = noisy == truth
    splits |= {"train": (inputs, noisy), "clean": (inputs[kept], noisy[kept])}
    splits["indexed"] = (inputs, noisy, torch.arange(len(noisy)), truth)
    if "validation" in splits:
        images, labels = (torch.cat(pair) for pair in zip(splits["train"], splits["validation"], strict=True))
        truth = torch.cat([truth, splits["validation"][1]])
        splits |= {"union": (images, labels), "indexed_union": (images, labels, torch.arange(len(labels)), truth)}
    return splits
