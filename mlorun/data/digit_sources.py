"""The UCI digits as a target with few labels, and sources to pretrain on: some as the target, some turned around."""

from __future__ import annotations

import torch
from torch import Tensor

from mlorun.data.balanced import balanced_split
from mlorun.data.digits import load_digits
from mlorun.errors import DataError
from mlorun.run.seeds import derive_seed

CHANGES = ("rotated", "inverted")


def digits_sources(
    *,
    seed: int,
    change: str,
    changed_share: float,
    pretrain_per_class: int,
    finetune_per_class: int,
    reweight_per_class: int,
    valid_per_class: int,
    test_per_class: int,
) -> dict[str, tuple[Tensor, ...]]:
    """Disjoint splits `pretrain`, `finetune`, `reweight`, `valid` and `test`, each (images, labels), equal classes;
    `labelled` is `finetune` and `reweight` together, for baselines.

    `pretrain` is (images, labels, row, changed): a share of its images is `rotated` by half a turn, or `inverted`
    (dark for light); `changed` (N,) bool says which, `row` (N,) is 0 .. N - 1.
    """
    if change not in CHANGES:
        raise DataError(
            "no such change of images", where="data.change", seen=change, fix=f"one of {', '.join(CHANGES)}"
        )
    if not 0 <= changed_share <= 1:
        raise DataError("a share lies in [0, 1]", where="data.changed_share", seen=f"{changed_share}")
    images, labels = load_digits()
    rows = balanced_split(
        labels,
        seed=seed,
        per_class={
            "test": test_per_class,
            "valid": valid_per_class,
            "reweight": reweight_per_class,
            "finetune": finetune_per_class,
            "pretrain": pretrain_per_class,
        },
    )
    splits: dict[str, tuple[Tensor, ...]] = {name: (images[rows[name]], labels[rows[name]]) for name in rows}
    inputs, targets = splits["pretrain"]
    generator = torch.Generator().manual_seed(derive_seed(seed, "digit_sources"))
    changed = torch.zeros(len(inputs), dtype=torch.bool)
    changed[torch.randperm(len(inputs), generator=generator)[: round(changed_share * len(inputs))]] = True
    # the darkest pixel becomes the lightest
    other = inputs.flip(2, 3) if change == "rotated" else images.max() + images.min() - inputs
    inputs = torch.where(changed[:, None, None, None], other, inputs)
    both = tuple(torch.cat(parts) for parts in zip(splits["finetune"], splits["reweight"], strict=True))
    return {**splits, "labelled": both, "pretrain": (inputs, targets, torch.arange(len(inputs)), changed)}
