"""Digits with equal classes, and digits to pretrain on that are turned around."""

from __future__ import annotations

import pytest
import torch

from mlorun.data.balanced import balanced_split
from mlorun.data.digit_sources import digits_sources
from mlorun.errors import DataError

SIZES = {"pretrain_per_class": 8, "finetune_per_class": 2, "reweight_per_class": 3, "valid_per_class": 4}


def test_balanced_splits_are_disjoint_and_one_seed_gives_a_name_the_same_rows_whatever_comes_after() -> None:
    labels = torch.arange(60) % 3
    rows = balanced_split(labels, seed=0, per_class={"test": 4, "train": 10})
    assert not set(rows["test"].tolist()) & set(rows["train"].tolist())
    assert torch.bincount(labels[rows["train"]]).tolist() == [10, 10, 10]
    assert torch.equal(rows["test"], balanced_split(labels, seed=0, per_class={"test": 4})["test"])
    assert not torch.equal(rows["test"], balanced_split(labels, seed=1, per_class={"test": 4})["test"])


def test_more_images_than_a_class_has_are_refused() -> None:
    with pytest.raises(DataError, match="too few"):
        balanced_split(torch.arange(20) % 2, seed=0, per_class={"test": 6, "train": 5})


@pytest.mark.parametrize("change", ["rotated", "inverted"])
def test_only_the_changed_images_differ_from_the_digits(change: str) -> None:
    splits = digits_sources(seed=0, change=change, changed_share=0.75, test_per_class=5, **SIZES)
    plain = digits_sources(seed=0, change=change, changed_share=0.0, test_per_class=5, **SIZES)
    images, labels, rows, changed = splits["pretrain"]
    assert changed.sum() == 60 and rows.tolist() == list(range(80))
    assert torch.equal(labels, plain["pretrain"][1])
    differs = (images - plain["pretrain"][0]).abs().flatten(1).amax(1) > 1e-4
    assert torch.equal(differs, changed)
    assert torch.equal(splits["labelled"][0], torch.cat([splits["finetune"][0], splits["reweight"][0]]))


def test_a_change_that_does_not_exist_is_refused() -> None:
    with pytest.raises(DataError, match="change"):
        digits_sources(seed=0, change="mirrored", changed_share=0.5, test_per_class=5, **SIZES)
