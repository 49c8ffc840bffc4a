"""Wrong labels, and the splits around them."""

from __future__ import annotations

import pytest
import torch

from mlorun.data.digits import digits_noisy
from mlorun.data.label_noise import corrupted
from mlorun.errors import DataError

LABELS = torch.arange(1000) % 10
SIZES = {"train_size": 600, "validation_size": 300, "selection_size": 300, "test_size": 597}


@pytest.mark.parametrize("noise", ["uniform", "flip"])
def test_exactly_the_share_asked_for_is_wrong(noise: str) -> None:
    wrong = corrupted(LABELS, seed=0, noise=noise, noise_rate=0.4)
    assert (wrong != LABELS).sum() == 400
    assert not torch.equal(wrong, corrupted(LABELS, seed=1, noise=noise, noise_rate=0.4))


def test_a_flip_takes_each_class_to_one_other_and_uniform_noise_to_all_others() -> None:
    def goals(noise: str) -> list[int]:
        wrong = corrupted(LABELS, seed=0, noise=noise, noise_rate=0.6)
        return [len(wrong[(wrong != LABELS) & (label == LABELS)].unique()) for label in range(10)]

    assert goals("flip") == [1] * 10
    assert goals("uniform") == [9] * 10


def test_the_splits_are_disjoint_and_the_indexed_one_knows_the_right_labels() -> None:
    splits = digits_noisy(seed=0, noise="uniform", noise_rate=0.5, **SIZES)
    images = torch.cat([splits[name][0].flatten(1) for name in ("train", "validation", "selection", "test")])
    assert len(images.unique(dim=0)) == len(images) == 1797
    inputs, labels, rows, truth = splits["indexed"]
    kept = labels == truth
    assert torch.equal(rows, torch.arange(600)) and kept.sum() == 300
    assert torch.equal(inputs, splits["train"][0]) and torch.equal(labels, splits["train"][1])
    assert torch.equal(splits["clean"][1], labels[kept])
    assert len(splits["union"][1]) == 900


def test_the_noise_leaves_the_other_splits_as_they_were() -> None:
    few, many = (digits_noisy(seed=0, noise="uniform", noise_rate=rate, **SIZES) for rate in (0.2, 0.6))
    assert torch.equal(few["test"][0], many["test"][0]) and torch.equal(few["train"][0], many["train"][0])


@pytest.mark.parametrize("change", [{"noise": "gaussian"}, {"noise_rate": 1.0}, {"train_size": 6000}])
def test_what_makes_no_splits_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(DataError):
        digits_noisy(**{"seed": 0, "noise": "uniform", "noise_rate": 0.5, **SIZES, **change})  # type: ignore[arg-type]
