"""Labels to disjoint sets of rows: balanced ones set aside, and a train set with an exponential tail."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.errors import DataError
from mlorun.run.seeds import derive_seed

logger = logging.getLogger("mlorun.data")


def long_tailed_sizes(head_size: int, imbalance_factor: float, classes: int) -> tuple[int, ...]:
    """int(head_size / imbalance_factor ** (c / (classes - 1))) for c = 0 .. classes - 1 (Cui et al. 2019).

    From head_size down to head_size / imbalance_factor. Raises DataError where a size would be 0.
    """
    require_positive("data.head_size", head_size)
    number = isinstance(imbalance_factor, (int, float)) and not isinstance(imbalance_factor, bool)
    if not number or not math.isfinite(imbalance_factor) or imbalance_factor < 1:
        raise DataError(
            "the imbalance factor must be a number of at least 1",
            where="data.imbalance_factor",
            seen=repr(imbalance_factor),
            fix="1 keeps every class equal; 100 makes the head a hundred times the tail",
        )
    if classes < 2:
        raise DataError("a long tail needs at least two classes", where="labels", seen=f"{classes} classes")
    sizes = tuple(int(head_size / imbalance_factor ** (c / (classes - 1))) for c in range(classes))
    if sizes[-1] < 1:
        raise DataError(
            "the rarest class would hold no image",
            where="data.imbalance_factor",
            seen=f"head_size {head_size}, imbalance_factor {imbalance_factor}: class sizes {list(sizes)}",
            fix=f"data.imbalance_factor={head_size} or less, or a larger data.head_size",
        )
    return sizes


def long_tailed_split(
    labels: Tensor, *, seed: int, imbalance_factor: float, head_size: int, set_aside: Mapping[str, int]
) -> dict[str, Tensor]:
    """Disjoint, ascending indices into labels: every name of set_aside, then `train`, then `unused`.

    `set_aside` gives images per class, e.g. {"test": 50, "balanced": 20}, taken in this order and before the
    train set, so that one seed sets the same images aside under every imbalance factor. The long-tailed sizes
    are dealt to the classes in an order that the seed decides; a class that holds fewer images than its size
    gives all it has, and a warning says so. Raises DataError for a class with no image left to train on.
    """
    counts = torch.bincount(labels).tolist()
    classes = len(counts)
    sizes = long_tailed_sizes(head_size, imbalance_factor, classes)
    for name, per_class in set_aside.items():
        require_positive(f"data.{name}_per_class", per_class)
    _check_room(counts, set_aside)

    dealt = torch.randperm(classes, generator=_generator(seed, "deal")).tolist()
    parts: dict[str, list[Tensor]] = {name: [] for name in (*set_aside, "train", "unused")}
    truncated: list[str] = []
    for label in range(classes):
        rows = torch.nonzero(labels == label).flatten()
        rows = rows[torch.randperm(len(rows), generator=_generator(seed, "class", str(label)))]
        for name, per_class in set_aside.items():
            parts[name].append(rows[:per_class])
            rows = rows[per_class:]
        size = sizes[dealt[label]]
        if size > len(rows):
            truncated.append(f"class {label}: {len(rows)} of {size}")
        parts["train"].append(rows[:size])
        parts["unused"].append(rows[size:])
    if truncated:
        logger.warning("the train set holds fewer images than asked for: %s", ", ".join(truncated))
    return {name: torch.cat(rows).sort().values for name, rows in parts.items()}


def long_tailed_sets(
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    imbalance_factor: float,
    head_size: int,
    balanced_per_class: int,
    selection_per_class: int,
    resampling: float,
    set_aside: Mapping[str, int],
) -> dict[str, tuple[Tensor, ...]]:
    """Disjoint splits `train` (long-tailed), `balanced` and every name of set_aside, each (images, labels). And

    selection      so many of the balanced images per class, which `balanced` then lacks; not there if 0
    union          all of train and balanced
    marked_union   (images, labels, marks): the same, and which of them are of balanced

    In train and in both unions, rows come as often as `repeated_rows` says.
    """
    set_aside = {**set_aside, "balanced": balanced_per_class - selection_per_class}
    if selection_per_class:
        set_aside["selection"] = selection_per_class
    rows = long_tailed_split(
        labels, seed=seed, imbalance_factor=imbalance_factor, head_size=head_size, set_aside=set_aside
    )
    splits: dict[str, tuple[Tensor, ...]] = {name: (images[rows[name]], labels[rows[name]]) for name in set_aside}
    train = rows["train"][repeated_rows(labels[rows["train"]], resampling)]
    both = torch.cat([rows["train"], rows["balanced"]])
    repeated = repeated_rows(labels[both], resampling)
    union = (images[both[repeated]], labels[both[repeated]])
    marks = repeated >= len(rows["train"])
    return {"train": (images[train], labels[train]), **splits, "union": union, "marked_union": (*union, marks)}


def repeated_rows(labels: Tensor, resampling: float) -> Tensor:
    """Ascending row numbers in which a row of a class of n comes round((n_max / n)^resampling) times.

    n_max is the size of the largest class. 0: every row once. 1: nearly as many of every class, class-balanced
    sampling. In between, e.g. 0.5 (square root): Kang et al. 2020, arXiv:1910.09217, section 4.1, where the exponent q
    is 1 - resampling. Raises DataError for a number outside 0 to 1.
    """
    number = isinstance(resampling, (int, float)) and not isinstance(resampling, bool)
    if not number or not 0 <= resampling <= 1:
        raise DataError(
            "resampling must be a number from 0 to 1",
            where="data.resampling",
            seen=repr(resampling),
            fix="0 takes every image once in an epoch; 1 takes as many of every class",
        )
    counts = torch.bincount(labels).clamp(min=1).double()
    times = (counts.max() / counts).pow(resampling).round().long()
    return torch.arange(len(labels)).repeat_interleave(times[labels])


def _check_room(counts: list[int], set_aside: Mapping[str, int]) -> None:
    """Every class must have one image more than is set aside."""
    reserved = sum(set_aside.values())
    fewest = min(counts)
    if fewest <= reserved:
        raise DataError(
            "a class has too few images for what is set aside",
            where=", ".join(f"data.{name}_per_class" for name in set_aside),
            seen=f"{reserved} images per class, but class {counts.index(fewest)} has {fewest}",
            fix=f"set {fewest - 1} or fewer aside, so that one remains to train on" if fewest > 1 else None,
        )


def _generator(seed: int, *names: str) -> torch.Generator:
    return torch.Generator().manual_seed(derive_seed(seed, "long_tailed", *names))
