"""MNIST in memory, normalized: long-tailed (the setting of Shu et al. 2019, arXiv:1902.07379), or with wrong labels."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from torch import Tensor

from mlorun.data.label_noise import Splits, noisy_splits
from mlorun.data.long_tailed import long_tailed_sets
from mlorun.errors import DataError

MEAN, STD = 0.1307, 0.3081
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
NO_FILES_NEEDED = "mlorun experiment=mwn_digits needs no files"


def mnist_long_tailed(
    *,
    root: str,
    download: bool,
    seed: int,
    imbalance_factor: float,
    head_size: int,
    balanced_per_class: int,
    selection_per_class: int,
    resampling: float,
) -> Splits:
    """Splits `train` (long-tailed), `balanced` (equal classes), `test` (all 10,000), each (images, labels); and
    those of `long_tailed_sets`.

    Images (N, 1, 28, 28) float32, normalized; labels (N,) int64. `root` is the folder above torchvision's
    MNIST/raw. Raises DataError where the files are absent or damaged.
    """
    images, labels, test_images, test_labels = _read(Path(root).expanduser(), download)
    splits = long_tailed_sets(
        images,
        labels,
        seed=seed,
        imbalance_factor=imbalance_factor,
        head_size=head_size,
        balanced_per_class=balanced_per_class,
        selection_per_class=selection_per_class,
        resampling=resampling,
        set_aside={},
    )
    splits["test"] = (test_images, test_labels)
    shared = {id(images): images for images, *_ in splits.values()}  # union and marked_union have the same
    normalized = {key: _normalized(images) for key, images in shared.items()}
    return {name: (normalized[id(images)], *rest) for name, (images, *rest) in splits.items()}


def mnist_noisy(
    *,
    root: str,
    download: bool,
    seed: int,
    train_size: int,
    validation_size: int,
    selection_size: int,
    noise: str,
    noise_rate: float,
) -> Splits:
    """Disjoint splits `train` (with wrong labels), `validation`, `selection` of the 60,000; and `test`, the 10,000.
    See `noisy_splits`; images, labels and root as in `mnist_long_tailed`."""
    images, labels, test_images, test_labels = _read(Path(root).expanduser(), download)
    sizes = {"train": train_size, "validation": validation_size, "selection": selection_size}
    splits = noisy_splits(images, labels, seed=seed, sizes=sizes, noise=noise, noise_rate=noise_rate)
    splits["test"] = (test_images, test_labels)
    return {name: (_normalized(images), *rest) for name, (images, *rest) in splits.items()}


def _normalized(images: Tensor) -> Tensor:
    return images[:, None].float().div_(255).sub_(MEAN).div_(STD)


def _read(root: Path, download: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train and test images (N, 28, 28) uint8 and labels (N,) int64."""
    folder = (root / "MNIST" / "raw").absolute()
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing and not download:
        raise DataError(
            "the MNIST files are not there",
            where="data.root",
            seen=f"no {', '.join(missing)} in {folder}",
            fix="set MLORUN_DATA (or data.root) to the folder that holds MNIST/raw, or put the unpacked "
            f"files where they were looked for, or use data.download=true; {NO_FILES_NEEDED}",
        )
    # here, not above: torchvision takes a while to import, and the other data sets do without
    from torchvision.datasets import MNIST  # type: ignore[import-untyped,unused-ignore]

    # what torchvision raises for files that are absent, cut short or not what their names say
    failures = (OSError, RuntimeError, ValueError, AssertionError, LookupError)
    if missing:
        try:
            # it prints every mirror that it tries
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                MNIST(str(root), download=True)
        except failures as error:
            raise DataError(
                "MNIST could not be downloaded",
                where="data.root",
                seen=f"{_first_line(error)} (into {folder})",
                fix=f"put the unpacked files {', '.join(FILES)} into that folder; {NO_FILES_NEEDED}",
            ) from error
    try:
        train, test = MNIST(str(root), train=True), MNIST(str(root), train=False)
        _check(train.data, train.targets, 60_000)
        _check(test.data, test.targets, 10_000)
    except failures as error:
        raise DataError(
            "the MNIST files are damaged",
            where="data.root",
            seen=f"{_first_line(error)} (reading {folder})",
            fix="delete the files in that folder, then put them there again or use data.download=true; "
            f"{NO_FILES_NEEDED}",
        ) from error
    return train.data, train.targets, test.data, test.targets


def _check(images: Tensor, labels: Tensor, count: int) -> None:
    if images.shape != (count, 28, 28) or labels.shape != (count,):
        raise ValueError(f"expected {count} images of 28x28, got {tuple(images.shape)}, {len(labels)} labels")
    if labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"labels should be 0 to 9, got {int(labels.min())} to {int(labels.max())}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
