"""The UCI handwritten digits, balanced, long-tailed or with wrong labels: 1797 images of 8x8 in the package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlorun.data.balanced import balanced_split
from mlorun.data.label_noise import Splits, noisy_splits
from mlorun.data.long_tailed import long_tailed_sets

# of all 1797 images, with pixels of 0..16 scaled to 0..1
MEAN, STD = 0.3053, 0.3760


def load_digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 8, 8) float32 of zero mean and unit variance; labels (1797,) int64. See DIGITS.md."""
    with np.load(Path(__file__).with_name("digits.npz"), allow_pickle=False) as archive:
        images, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"])
    return images[:, None].float().div_(16).sub_(MEAN).div_(STD), labels.long()


def digits_balanced(*, seed: int, per_class: Mapping[str, int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Disjoint splits of equal classes, each (images, labels): for each name so many images per class, in order."""
    images, labels = load_digits()
    rows = balanced_split(labels, seed=seed, per_class=per_class)
    return {name: (images[kept], labels[kept]) for name, kept in rows.items()}


def digits_long_tailed(
    *,
    seed: int,
    imbalance_factor: float,
    head_size: int,
    balanced_per_class: int,
    selection_per_class: int,
    resampling: float,
    test_per_class: int,
) -> Splits:
    """Disjoint splits `train` (long-tailed), `balanced` and `test` (equal classes), each (images, labels); and those of
    `long_tailed_sets`."""
    images, labels = load_digits()
    return long_tailed_sets(
        images,
        labels,
        seed=seed,
        imbalance_factor=imbalance_factor,
        head_size=head_size,
        balanced_per_class=balanced_per_class,
        selection_per_class=selection_per_class,
        resampling=resampling,
        set_aside={"test": test_per_class},
    )


def digits_noisy(
    *,
    seed: int,
    train_size: int,
    validation_size: int,
    selection_size: int,
    test_size: int,
    noise: str,
    noise_rate: float,
) -> Splits:
    """Disjoint splits `train` (with wrong labels), `validation`, `selection` and `test`; see `noisy_splits`."""
    sizes = {"train": train_size, "validation": validation_size, "selection": selection_size, "test": test_size}
    return noisy_splits(*load_digits(), seed=seed, sizes=sizes, noise=noise, noise_rate=noise_rate)
