"""What tests of recipes share: an experiment's final metrics, and where MNIST is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import mlorun
from mlorun.core.engine import Engine

DATA = Path(os.environ.get("MLORUN_DATA", "data")).absolute()
needs_mnist = pytest.mark.skipif(
    not (DATA / "MNIST" / "raw" / "train-images-idx3-ubyte").is_file(),
    reason="MNIST is not there: set MLORUN_DATA to the folder above MNIST/raw",
)


def engine(experiment: str, *overrides: str) -> Engine:
    """Built, not run, and evaluated at the end only."""
    mnist = [f"data.root={DATA}"] if "mnist" in experiment else []
    return mlorun.build(mlorun.compose([f"experiment={experiment}", "engine.valid_every=0", *mnist, *overrides]))


def metrics(experiment: str, *overrides: str) -> dict[str, float]:
    """What an evaluation at the end gives."""
    return dict(engine(experiment, *overrides).run())
