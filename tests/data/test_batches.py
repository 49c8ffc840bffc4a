"""Nestings: mapped, measured, and passed over in order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from mlorun.data.batches import batch_length, length, map_tensors, on_device, ordered_batches
from mlorun.errors import DataError

CPU = torch.device("cpu")


class Pair(NamedTuple):
    inputs: Tensor
    labels: Tensor


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield torch.zeros(1)


class Noisy(Dataset[Tensor]):
    """Ten rows of a random transform."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, row: int) -> Tensor:
        return row + torch.rand(())


def nestings() -> list[Any]:
    rows, labels = torch.arange(20.0).reshape(10, 2), torch.arange(10)
    return [
        rows,
        (rows, labels),
        [rows, labels],
        {"inputs": rows, "labels": labels},
        OrderedDict(inputs=rows, labels=labels),
        Pair(rows, labels),
        {"pair": Pair(rows, labels), "views": [(rows, rows), {"deep": labels}]},
    ]


@pytest.mark.parametrize("nesting", nestings(), ids=lambda nesting: type(nesting).__name__)
def test_any_nesting_is_mapped_measured_and_passed_over(nesting: Any) -> None:
    assert length(nesting) == batch_length(nesting) == 10
    batches = list(ordered_batches(nesting, 4, CPU))
    assert [batch_length(batch) for batch in batches] == [4, 4, 2]
    seen: list[list[Tensor]] = []
    for batch in (*batches, nesting):
        seen.append([])
        map_tensors(seen[-1].append, batch)
    *parts, whole = seen
    for column, tensor in enumerate(whole):
        assert torch.equal(torch.cat([part[column] for part in parts]), tensor)


def test_mapping_keeps_the_form_and_other_leaves() -> None:
    batch = {"pair": Pair(torch.ones(2), torch.zeros(2)), "list": [torch.ones(1)], "text": ["a", "b"], "n": 3}
    doubled = map_tensors(lambda tensor: tensor * 2, batch)
    assert isinstance(doubled["pair"], Pair) and torch.equal(doubled["pair"].inputs, torch.full((2,), 2.0))
    assert isinstance(doubled["list"], list) and isinstance(doubled["pair"], tuple)
    assert doubled["text"] == ["a", "b"] and doubled["n"] == 3


def test_a_dataset_is_passed_over_in_order_with_its_incomplete_last_batch() -> None:
    dataset = TensorDataset(torch.arange(10), torch.arange(10) * 2)
    assert length(dataset) == 10
    batches = list(ordered_batches(dataset, 4, CPU))
    assert [batch[0].tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(torch.equal(first * 2, second) for first, second in batches)


def test_two_passes_over_a_random_transform_agree_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first, second = (torch.cat(list(ordered_batches(Noisy(), 4, CPU))) for _ in range(2))
    assert torch.equal(first, second)
    assert len(torch.unique(first - torch.arange(10))) == 10
    assert torch.equal(torch.get_rng_state(), before)


def test_a_split_already_on_the_device_is_not_copied() -> None:
    rows = torch.zeros(4, 2)
    assert on_device({"rows": rows}, CPU)["rows"].data_ptr() == rows.data_ptr()
    assert on_device(rows.t(), CPU).is_contiguous()


@pytest.mark.parametrize(
    ("split", "complaint"),
    [
        ((torch.zeros(3), torch.zeros(4)), "differ in length"),
        ({}, "holds no tensor"),
        ((torch.zeros(3), "labels"), "nesting of tensors"),
        ({"x": torch.zeros(())}, "nesting of tensors"),
        (None, "nesting of tensors"),
        (Endless(), "without a length"),
    ],
)
def test_what_is_no_split_is_refused(split: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        length(split)


def test_the_part_that_is_no_tensor_is_named() -> None:
    with pytest.raises(DataError) as caught:
        length({"views": [torch.zeros(3), 5]})
    assert caught.value.where == "split['views'][1]" and caught.value.seen == "int"


def test_a_batch_without_tensors_has_no_length() -> None:
    with pytest.raises(DataError, match="no tensor"):
        batch_length({"text": ["a"]})


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, None])
def test_an_evaluation_batch_size_that_is_not_positive_is_refused(batch_size: Any) -> None:
    with pytest.raises(DataError, match="evaluation_batch_size"):
        next(ordered_batches(torch.zeros(3), batch_size, CPU))
