"""Few-shot tasks of the UCI digits: a class is a digit under a quarter turn; no digit is in two splits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.data.digits import load_digits
from mlorun.errors import DataError
from mlorun.run.seeds import derive_seed

TURNS = 4


def digit_tasks(
    *,
    seed: int,
    ways: int,
    shots: int,
    queries: int,
    noise_rate: float,
    digits: dict[str, Sequence[int]],
    tasks: dict[str, int],
) -> dict[str, Any]:
    """Splits of tasks, one for each name in `digits` (which digits it has) and `tasks` (how many tasks).

    A split is {"support": (images, labels), "query": (images, labels)}, images (tasks, ways * points, 1, 8, 8), labels
    (tasks, ways * points) in 0 .. ways - 1, with `shots` and `queries` points of each class; a share `noise_rate` of
    the support labels is wrong, any of the other classes. The split `images` is every image of the first name, (images,
    classes), for training that knows no tasks.
    """
    if not 0 <= noise_rate <= 1:
        raise DataError("a share lies in [0, 1]", where="data.noise_rate", seen=f"{noise_rate}")
    for name, value in {"ways": ways, "shots": shots, "queries": queries}.items():
        require_positive(f"data.{name}", value)
    _require_disjoint(digits, tasks)
    splits: dict[str, Any] = {}
    for name, own in digits.items():
        require_positive(f"data.tasks.{name}", tasks[name])
        classes = _classes(own)
        draw = torch.Generator().manual_seed(derive_seed(seed, "digit_tasks", name))
        splits[name] = _tasks(draw, name, classes, tasks[name], ways, shots, queries)
        images, labels = splits[name]["support"]
        other = (labels + torch.randint(1, max(ways, 2), labels.shape, generator=draw)) % ways
        wrong = torch.rand(labels.shape, generator=draw) < noise_rate
        splits[name]["support"] = images, torch.where(wrong, other, labels)
        if "images" not in splits:
            labels = [torch.full((len(images),), label) for label, images in enumerate(classes)]
            splits["images"] = torch.cat(classes), torch.cat(labels)
    return splits


def _require_disjoint(digits: dict[str, Sequence[int]], tasks: dict[str, int]) -> None:
    used = [digit for own in digits.values() for digit in own]
    if len(set(used)) < len(used) or set(digits) != set(tasks) or not set(used) <= set(range(10)):
        raise DataError(
            "every split needs digits of its own, and a number of tasks",
            where="data.digits, data.tasks",
            seen=f"{digits}, {tasks}",
            fix="name each digit from 0 to 9 once, and the same splits in both",
        )


def _classes(digits: Sequence[int]) -> list[Tensor]:
    """The images of each class, (N, 1, 8, 8)."""
    images, labels = load_digits()
    return [torch.rot90(images[labels == digit], turn, (2, 3)) for digit in digits for turn in range(TURNS)]


def _tasks(
    draw: torch.Generator, name: str, classes: list[Tensor], count: int, ways: int, shots: int, queries: int
) -> dict[str, tuple[Tensor, Tensor]]:
    each = min(map(len, classes))
    if ways > len(classes) or shots + queries > each:
        raise DataError(
            f"the split {name} has too few classes or images for a task",
            where="data",
            seen=f"{ways} ways of {len(classes)} classes, {shots} + {queries} images of {each}",
            fix="fewer data.ways, data.shots or data.queries, or more digits",
        )
    pool = torch.stack([images[:each] for images in classes])  # (classes, images, 1, 8, 8)
    chosen = torch.rand(count, len(classes), generator=draw).argsort(1)[:, :ways, None]
    rows = torch.rand(count, ways, each, generator=draw).argsort(2)[..., : shots + queries]
    images = pool[chosen, rows]  # (tasks, ways, shots + queries, 1, 8, 8)
    labels = torch.arange(ways)[None, :, None].expand(count, ways, shots + queries)
    parts = {"support": slice(shots), "query": slice(shots, None)}
    return {key: (images[:, :, part].flatten(1, 2), labels[:, :, part].flatten(1, 2)) for key, part in parts.items()}
