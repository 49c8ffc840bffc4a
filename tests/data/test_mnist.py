"""MNIST: the real files where they are, and one clean screen where they are not or are damaged."""

from __future__ import annotations

import os
import struct
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from mlorun.data.mnist import FILES, MEAN, STD, mnist_long_tailed
from mlorun.errors import DataError

DEFAULTS = {
    "download": False, "imbalance_factor": 100, "head_size": 5900, "balanced_per_class": 100, "selection_per_class": 0,
    "resampling": 0.0,
}  # fmt: skip
ROOT = os.environ.get("MLORUN_DATA", "data")

needs_mnist = pytest.mark.skipif(
    not all((Path(ROOT) / "MNIST" / "raw" / name).is_file() for name in FILES),
    reason="needs the MNIST files: set MLORUN_DATA to the folder that holds MNIST/raw",
)


def build(root: Path | str = ROOT, **changes: Any) -> dict[str, tuple[Tensor, ...]]:
    return mnist_long_tailed(root=str(root), **{"seed": 0, **DEFAULTS, **changes})


def write_idx(path: Path, magic: int, shape: tuple[int, ...], payload: bytes) -> None:
    path.write_bytes(struct.pack(f">{1 + len(shape)}I", magic, *shape) + payload)


@pytest.fixture
def blank_files(tmp_path: Path) -> Path:
    """Files of the right form: black images, labels 0 to 9 in turn."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        write_idx(raw / f"{part}-images-idx3-ubyte", 2051, (count, 28, 28), bytes(count * 784))
        write_idx(raw / f"{part}-labels-idx1-ubyte", 2049, (count,), bytes(range(10)) * (count // 10))
    return raw


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@needs_mnist
def test_the_splits_are_the_tutorials() -> None:
    splits = build(seed=3)
    counts = {name: torch.bincount(split[1]).tolist() for name, split in splits.items()}
    assert sorted(counts["train"]) == [59, 98, 164, 273, 456, 762, 1271, 2120, 3536, 5900]
    assert counts["balanced"] == [100] * 10
    assert counts["test"] == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    for images, labels, *_ in splits.values():
        assert images.shape == (len(labels), 1, 28, 28) and images.dtype == torch.float32
        assert labels.dtype == torch.int64


@needs_mnist
def test_the_test_images_are_torchvisions_normalized_and_in_order() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    transforms = pytest.importorskip("torchvision.transforms")
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    source = datasets.MNIST(ROOT, train=False, transform=transform)
    images, labels = build()["test"]
    for row in (0, 1, 4_999, 9_999):
        image, label = source[row]
        assert torch.equal(images[row], image)
        assert labels[row] == label


@needs_mnist
def test_a_truncated_head_is_said(caplog: pytest.LogCaptureFixture) -> None:
    _, labels = build(seed=0, head_size=6700)["train"]  # no class has 6700 images beside the balanced hundred
    truncated = [record.getMessage() for record in caplog.records if record.name == "mlorun.data"]
    head = int(torch.bincount(labels).argmax())
    assert len(truncated) == 1
    assert f"class {head}: {int((labels == head).sum())} of 6700" in truncated[0]


def test_the_balanced_set_is_taken_out_of_the_train_images(blank_files: Path) -> None:
    splits = build(blank_files.parents[1], head_size=5900, imbalance_factor=1)
    assert torch.bincount(splits["train"][1]).tolist() == [5900] * 10
    assert torch.bincount(splits["balanced"][1]).tolist() == [100] * 10
    assert len(splits["test"][1]) == 10_000


def test_missing_files_are_one_screen_naming_the_folder_and_every_way_out(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        build(tmp_path)
    screen = str(caught.value)
    assert str(tmp_path / "MNIST" / "raw") in screen
    for way_out in ("MLORUN_DATA", "data.root", "data.download=true", "experiment=mwn_digits"):
        assert way_out in screen
    assert list(tmp_path.iterdir()) == []  # nothing was tried, nothing left behind


def test_one_missing_file_is_named(blank_files: Path) -> None:
    (blank_files / FILES[3]).unlink()
    with pytest.raises(DataError) as caught:
        build(blank_files.parents[1])
    assert FILES[3] in str(caught.value) and FILES[0] not in str(caught.value)


@pytest.mark.usefixtures("no_network")
def test_a_download_that_fails_is_the_same_clean_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="could not be downloaded") as caught:
        build(tmp_path, download=True)
    assert str(tmp_path) in str(caught.value) and "experiment=mwn_digits" in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("no_network")
def test_files_that_are_there_are_not_downloaded_again(blank_files: Path) -> None:
    assert len(build(blank_files.parents[1], download=True)["test"][1]) == 10_000


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0, 3, 1000])
def test_a_file_cut_short_is_a_clean_error(blank_files: Path, name: str, kept: int) -> None:
    path = blank_files / name
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match="damaged") as caught:
        build(blank_files.parents[1])
    assert str(blank_files) in str(caught.value) and "experiment=mwn_digits" in str(caught.value)


def test_a_file_of_something_else_is_a_clean_error(blank_files: Path) -> None:
    (blank_files / FILES[0]).write_text("<html>404 Not Found</html>")
    with pytest.raises(DataError, match="damaged"):
        build(blank_files.parents[1])


def test_labels_beyond_nine_are_a_clean_error(blank_files: Path) -> None:
    write_idx(blank_files / FILES[1], 2049, (60_000,), b"\x0b" * 60_000)
    with pytest.raises(DataError, match="damaged") as caught:
        build(blank_files.parents[1])
    assert "labels should be 0 to 9" in str(caught.value)


def test_images_and_labels_that_do_not_match_are_a_clean_error(blank_files: Path) -> None:
    write_idx(blank_files / FILES[1], 2049, (50_000,), bytes(range(10)) * 5_000)
    with pytest.raises(DataError, match="damaged"):
        build(blank_files.parents[1])


def test_the_yaml_names_every_argument_and_finds_its_root_in_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = Path(__file__).parents[2] / "configs" / "data" / "mnist_long_tailed.yaml"
    config = OmegaConf.merge({"seed": 5}, {"data": OmegaConf.load(path)})
    expected = {"_target_": "mlorun.data.mnist.mnist_long_tailed", "seed": 5, **DEFAULTS}
    monkeypatch.delenv("MLORUN_DATA", raising=False)
    assert OmegaConf.to_container(config.data, resolve=True) == {**expected, "root": "data"}
    monkeypatch.setenv("MLORUN_DATA", "elsewhere")
    assert OmegaConf.to_container(config.data, resolve=True) == {**expected, "root": "elsewhere"}
