"""Writes digits.npz from scikit-learn's copy of the data: `python -m mlorun.data.make_digits`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]


def main() -> None:
    digits = load_digits()
    np.savez_compressed(
        Path(__file__).with_name("digits.npz"),
        images=digits.images.astype(np.uint8),  # (1797, 8, 8), whole numbers of 0..16
        labels=digits.target.astype(np.uint8),  # (1797,)
    )


if __name__ == "__main__":
    main()
