"""The long-tailed split: sizes in closed form, disjoint and exact parts, a seeded deal."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor

from mlorun.data.long_tailed import long_tailed_sets, long_tailed_sizes, long_tailed_split, repeated_rows
from mlorun.errors import DataError


def labels_of(*counts: int) -> Tensor:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))]


def split(labels: Tensor, **changes: object) -> dict[str, Tensor]:
    arguments = {"seed": 0, "imbalance_factor": 10, "head_size": 50, "set_aside": {"test": 5, "balanced": 3}}
    return long_tailed_split(labels, **{**arguments, **changes})  # type: ignore[arg-type]


def counts_in(labels: Tensor, rows: Tensor, classes: int) -> list[int]:
    return torch.bincount(labels[rows], minlength=classes).tolist()


@pytest.mark.parametrize("factor", [1, 2, 10, 50, 100, 200.5])
def test_ten_classes_have_the_sizes_of_the_closed_form(factor: float) -> None:
    assert long_tailed_sizes(5900, factor, 10) == tuple(int(5900 / factor ** (c / 9)) for c in range(10))


def test_the_tutorial_sizes_are_these_numbers() -> None:
    assert long_tailed_sizes(5900, 100, 10) == (5900, 3536, 2120, 1271, 762, 456, 273, 164, 98, 59)


def test_the_tail_is_the_head_over_the_factor() -> None:
    assert long_tailed_sizes(100, 20, 3) == (100, 22, 5)
    assert long_tailed_sizes(7, 1, 4) == (7, 7, 7, 7)


@pytest.mark.parametrize("factor", [0, 0.99, -3, math.nan, math.inf, "ten", None, True])
def test_a_factor_below_one_or_no_number_is_refused(factor: object) -> None:
    with pytest.raises(DataError, match="imbalance factor"):
        long_tailed_sizes(100, factor, 10)  # type: ignore[arg-type]


@pytest.mark.parametrize("head", [0, -1, 2.5, "many", None, True])
def test_a_head_size_that_is_no_positive_whole_number_is_refused(head: object) -> None:
    with pytest.raises(DataError, match="head_size must be a whole number"):
        long_tailed_sizes(head, 10, 10)  # type: ignore[arg-type]


def test_an_empty_tail_class_is_refused_and_the_largest_factor_named() -> None:
    assert long_tailed_sizes(100, 100, 10)[-1] == 1
    with pytest.raises(DataError, match="rarest class would hold no image") as caught:
        long_tailed_sizes(100, 101, 10)
    assert caught.value.fix is not None and "imbalance_factor=100 or less" in caught.value.fix


def test_the_parts_are_disjoint_and_together_are_all_labels() -> None:
    labels = labels_of(80, 61, 70)
    parts = split(labels)
    assert list(parts) == ["test", "balanced", "train", "unused"]
    assert torch.equal(torch.cat(list(parts.values())).sort().values, torch.arange(len(labels)))
    for rows in parts.values():
        assert torch.equal(rows, rows.sort().values)


def test_every_part_has_exactly_the_images_asked_for() -> None:
    labels = labels_of(80, 61, 70)
    parts = split(labels)
    assert counts_in(labels, parts["test"], 3) == [5, 5, 5]
    assert counts_in(labels, parts["balanced"], 3) == [3, 3, 3]
    assert sorted(counts_in(labels, parts["train"], 3)) == [5, 15, 50]
    assert len(parts["unused"]) == 80 + 61 + 70 - 15 - 9 - 70


def test_the_same_seed_gives_the_same_rows_and_another_seed_others() -> None:
    labels = labels_of(80, 80, 80)
    first, again, other = split(labels), split(labels), split(labels, seed=1)
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_the_seed_decides_which_class_is_the_head() -> None:
    labels = labels_of(80, 80, 80)
    heads = [counts_in(labels, split(labels, seed=seed)["train"], 3).index(50) for seed in range(30)]
    assert set(heads) == {0, 1, 2}


def test_what_is_set_aside_does_not_depend_on_the_imbalance() -> None:
    labels = labels_of(80, 80, 80)
    mild, steep = split(labels, imbalance_factor=2), split(labels, imbalance_factor=50)
    assert torch.equal(mild["test"], steep["test"])
    assert torch.equal(mild["balanced"], steep["balanced"])
    assert not torch.equal(mild["train"], steep["train"])


def test_a_class_too_small_for_its_size_gives_all_it_has_and_is_named(
    caplog: pytest.LogCaptureFixture,
) -> None:
    labels = labels_of(30, 30)
    with caplog.at_level(logging.INFO, logger="mlorun.data"):
        train = split(labels)["train"]
    counts = counts_in(labels, train, 2)
    head = counts.index(22)  # 30 less 5 and 3 set aside, where 50 were asked for
    assert sorted(counts) == [5, 22]
    assert [record.getMessage() for record in caplog.records] == [
        f"the train set holds fewer images than asked for: class {head}: 22 of 50"
    ]


def test_nothing_is_said_where_every_class_has_enough(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="mlorun.data"):
        split(labels_of(58, 58))  # 50 + 5 + 3: just enough
    assert not caplog.records


def test_setting_aside_a_whole_class_is_refused_and_the_class_named() -> None:
    split(labels_of(60, 9))
    with pytest.raises(DataError, match="too few images") as caught:
        split(labels_of(60, 8))
    assert "class 1 has 8" in str(caught.value)


@pytest.mark.parametrize("labels", [labels_of(), labels_of(9)])
def test_fewer_than_two_classes_are_refused(labels: Tensor) -> None:
    with pytest.raises(DataError, match="at least two classes"):
        split(labels)


def test_an_amount_set_aside_that_is_not_positive_is_refused() -> None:
    with pytest.raises(DataError, match=r"data\.balanced_per_class"):
        split(labels_of(60, 60), set_aside={"balanced": 0})


@pytest.mark.parametrize(("resampling", "times"), [(0.0, [1, 1, 1]), (0.5, [1, 2, 5]), (1, [1, 4, 25])])
def test_resampling_repeats_the_rows_of_a_class_by_its_power(resampling: float, times: list[int]) -> None:
    labels = labels_of(100, 25, 4)
    rows = repeated_rows(labels, resampling)
    assert torch.equal(torch.unique(rows), torch.arange(129)) and torch.equal(rows, rows.sort().values)
    assert torch.equal(torch.bincount(rows), torch.tensor(times)[labels])


@pytest.mark.parametrize("resampling", [-0.1, 1.5, math.nan, True, "all"])
def test_resampling_that_is_no_number_from_0_to_1_is_refused(resampling: object) -> None:
    with pytest.raises(DataError, match="resampling must be a number from 0 to 1"):
        repeated_rows(labels_of(5, 5), resampling)  # type: ignore[arg-type]  # as a config may have it


def sets(resampling: float) -> dict[str, tuple[Tensor, ...]]:
    labels = labels_of(90, 90, 90)
    images = torch.arange(len(labels))  # each its own number
    return long_tailed_sets(
        images, labels, seed=0, imbalance_factor=16, head_size=64, balanced_per_class=8, selection_per_class=2,
        resampling=resampling, set_aside={"test": 4},
    )  # fmt: skip


def test_resampled_sets_hold_the_same_images_with_their_labels_and_marks() -> None:
    once, often = sets(0.0), sets(1.0)
    assert sorted(torch.bincount(once["train"][1]).tolist()) == [4, 16, 64]
    assert torch.bincount(often["train"][1]).tolist() == [64, 64, 64]
    counts = torch.bincount(often["union"][1])
    assert counts.max() == 70 and counts.min() > 63
    for name in ("test", "balanced", "selection"):
        assert all(torch.equal(a, b) for a, b in zip(once[name], often[name], strict=True))
    for name in ("train", "union", "marked_union"):
        rows = [{tuple(row) for row in torch.stack(split, 1).tolist()} for split in (once[name], often[name])]
        assert rows[0] == rows[1], "other images, labels or marks"
    assert set(often["marked_union"][0][often["marked_union"][2]].tolist()) == set(often["balanced"][0].tolist())
    assert torch.equal(often["union"][0], often["marked_union"][0])
