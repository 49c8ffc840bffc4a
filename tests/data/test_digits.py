"""The embedded digits: what the file holds, and the splits made of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

import mlorun.data.digits
from mlorun.data.digits import MEAN, STD, digits_long_tailed, load_digits
from mlorun.errors import DataError

DEFAULTS: dict[str, Any] = {
    "imbalance_factor": 20, "head_size": 100, "balanced_per_class": 20, "selection_per_class": 0,
    "resampling": 0.0, "test_per_class": 50,
}  # fmt: skip


def test_the_file_holds_1797_images_of_eight_by_eight_and_their_labels() -> None:
    images, labels = load_digits()
    assert images.shape == (1797, 1, 8, 8) and images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert torch.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_images_are_standardized() -> None:
    images, _ = load_digits()
    assert abs(images.mean().item()) < 1e-3
    assert abs(images.std().item() - 1) < 1e-3
    pixels = images * STD + MEAN
    assert pixels.min().abs() < 1e-6 and (pixels.max() - 1).abs() < 1e-6


def test_the_file_equals_what_scikit_learn_distributes() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="needs scikit-learn, the source of the file")
    source = datasets.load_digits()
    images, labels = load_digits()
    expected = torch.from_numpy(source.images)[:, None].float().div(16).sub(MEAN).div(STD)
    assert torch.equal(images, expected)
    assert torch.equal(labels, torch.from_numpy(source.target).long())


def test_the_licence_note_lies_beside_the_file() -> None:
    note = Path(mlorun.data.digits.__file__).with_name("DIGITS.md").read_text()
    assert "CC BY 4.0" in note and "Alpaydin" in note and "make_digits.py" in note


def test_the_splits_have_the_sizes_asked_for() -> None:
    splits = digits_long_tailed(seed=0, **DEFAULTS)
    counts = {name: torch.bincount(split[1], minlength=10).tolist() for name, split in splits.items()}
    assert counts["balanced"] == [20] * 10
    assert counts["test"] == [50] * 10
    assert sorted(counts["train"], reverse=True) == [100, 71, 51, 36, 26, 18, 13, 9, 6, 5]
    assert {name: len(split[0]) for name, split in splits.items()} == {
        "train": 335,
        "balanced": 200,
        "test": 500,
        "union": 535,
        "marked_union": 535,
    }


def test_no_image_is_in_two_splits() -> None:
    splits = digits_long_tailed(seed=0, **DEFAULTS)
    everything = torch.cat([splits[name][0] for name in ("train", "balanced", "test")]).flatten(1)
    assert len(torch.unique(load_digits()[0].flatten(1), dim=0)) == 1797  # no two images are the same
    assert len(torch.unique(everything, dim=0)) == 335 + 200 + 500


def test_every_image_keeps_its_label() -> None:
    images, labels = load_digits()
    label_of = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for split_images, split_labels, *_ in digits_long_tailed(seed=3, **DEFAULTS).values():
        assert [label_of[image.numpy().tobytes()] for image in split_images] == split_labels.tolist()


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (digits_long_tailed(seed=seed, **DEFAULTS) for seed in (0, 0, 1))
    for name in first:
        assert torch.equal(first[name][0], again[name][0])
        assert torch.equal(first[name][1], again[name][1])
        assert not (first[name][0].shape == other[name][0].shape and torch.equal(first[name][0], other[name][0]))


def test_setting_aside_more_than_there_is_is_refused() -> None:
    with pytest.raises(DataError, match="too few images"):
        digits_long_tailed(seed=0, **{**DEFAULTS, "test_per_class": 170})


def test_the_yaml_names_every_argument_and_no_default_lives_twice() -> None:
    path = Path(__file__).parents[2] / "configs" / "data" / "digits_long_tailed.yaml"
    config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert config == {"_target_": "mlorun.data.digits.digits_long_tailed", "seed": "${seed}", **DEFAULTS}


def test_loading_imports_neither_torchvision_nor_scikit_learn() -> None:
    code = (
        "import sys; from mlorun.data.digits import load_digits; load_digits(); "
        "sys.exit(bool({'torchvision', 'sklearn'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_the_selection_split_is_taken_from_the_balanced_images_alone() -> None:
    whole = digits_long_tailed(seed=0, **DEFAULTS)
    halved = digits_long_tailed(seed=0, **{**DEFAULTS, "selection_per_class": 8})
    assert torch.bincount(halved["balanced"][1]).tolist() == [12] * 10
    assert torch.bincount(halved["selection"][1]).tolist() == [8] * 10
    parts = torch.cat([halved["balanced"][0], halved["selection"][0]]).flatten(1)
    assert torch.equal(torch.unique(parts, dim=0), torch.unique(whole["balanced"][0].flatten(1), dim=0))
    assert all(torch.equal(halved[name][0], whole[name][0]) for name in ("train", "test"))


def test_the_union_is_train_and_balanced_and_marks_say_which() -> None:
    splits = digits_long_tailed(seed=0, **DEFAULTS)
    images, labels, marks = splits["marked_union"]
    assert torch.equal(images, splits["union"][0]) and torch.equal(labels, splits["union"][1])
    for name, chosen in (("train", ~marks), ("balanced", marks)):
        assert torch.equal(images[chosen], splits[name][0]) and torch.equal(labels[chosen], splits[name][1])
