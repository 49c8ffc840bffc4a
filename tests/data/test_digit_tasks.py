"""Few-shot tasks of rotated digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlorun.data.digit_tasks import digit_tasks
from mlorun.data.digits import load_digits
from mlorun.errors import DataError

DIGITS = {"train": [0, 1, 5, 6, 8, 9], "valid": [2, 3], "test": [4, 7]}


def splits(seed: int = 0, **changed: Any) -> dict[str, Any]:
    chosen: dict[str, Any] = {"ways": 5, "shots": 2, "queries": 3, "noise_rate": 0.0}
    chosen |= {"digits": DIGITS, "tasks": {"train": 40, "valid": 5, "test": 30}, **changed}
    return digit_tasks(seed=seed, **chosen)


def origin(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The row, the digit and the quarter turns of each image, (N, 1, 8, 8)."""
    everything, labels = load_digits()
    turned = torch.stack([torch.rot90(everything, turn, (2, 3)) for turn in range(4)])
    same = (images.flatten(1)[:, None] - turned.flatten(0, 1).flatten(1)).abs().amax(2) < 1e-6
    found = same.float().argmax(1)
    assert same.any(1).all()
    return found % len(everything), labels[found % len(everything)], found // len(everything)


def test_no_digit_of_a_test_task_is_in_a_training_task() -> None:
    made = splits(tasks={"train": 3, "valid": 2, "test": 2})
    for name, own in DIGITS.items():
        for part in ("support", "query"):
            _, digits, _ = origin(made[name][part][0].flatten(0, 1))
            assert set(digits.tolist()) <= set(own)
    assert len(made["images"][0]) == 4 * sum(int((load_digits()[1] == digit).sum()) for digit in DIGITS["train"])
    assert set(made["images"][1].tolist()) == set(range(24))


def test_a_task_has_so_many_points_of_each_class_and_a_class_is_a_digit_under_one_turn() -> None:
    test = splits(tasks={"train": 1, "valid": 1, "test": 2})["test"]
    for task in range(2):
        support, query = ((images[task], labels[task]) for images, labels in (test["support"], test["query"]))
        rows, digits, turns = origin(torch.cat([support[0], query[0]]))
        labels = torch.cat([support[1], query[1]])
        assert torch.bincount(support[1]).tolist() == [2] * 5 and torch.bincount(query[1]).tolist() == [3] * 5
        classes = [set(zip(digits[labels == k].tolist(), turns[labels == k].tolist(), strict=True)) for k in range(5)]
        assert all(len(each) == 1 for each in classes) and len(set.union(*classes)) == 5
        assert all(len(set(rows[labels == k].tolist())) == 5 for k in range(5)), "an image is in support or in query"


def test_the_seed_decides() -> None:
    one, same, other = splits(0), splits(0), splits(1)
    assert torch.equal(one["train"]["support"][0], same["train"]["support"][0])
    assert not torch.equal(one["train"]["support"][0], other["train"]["support"][0])


def test_a_share_of_the_support_labels_is_wrong_and_no_query_label() -> None:
    clean, noisy = splits(), splits(noise_rate=0.4, tasks={"train": 40, "valid": 5, "test": 200})
    wrong = noisy["test"]["support"][1] != clean["test"]["support"][1][0]
    assert float(wrong.float().mean()) == pytest.approx(0.4, abs=0.04)
    assert torch.equal(noisy["test"]["query"][1][:30], clean["test"]["query"][1])


@pytest.mark.parametrize(
    "change",
    [
        {"digits": {**DIGITS, "test": [4, 5]}},
        {"digits": {**DIGITS, "test": [4, 10]}},
        {"tasks": {"train": 3}},
        {"ways": 9},
        {"queries": 200},
        {"noise_rate": 1.5},
    ],
)
def test_what_cannot_be_dealt_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        splits(**change)
