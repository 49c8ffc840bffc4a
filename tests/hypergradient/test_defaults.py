"""Out of the box, estimators that keep something between calls point where the exact hypergradient points."""

from __future__ import annotations

import pytest

from tests.benchmarks.default_cosines import run

# a lower problem with a definite Hessian: elsewhere the exact hypergradient is what its damping makes of it
PROGRAM = ("experiment=mwn_digits", "classifier.optimizer.weight_decay=0.01")


@pytest.fixture(autouse=True)
def float64() -> None:
    """In place of the folder's: runs are in float32, as their config has it."""


def cosine_to_exact(row: str) -> float:
    """Of the mean over four batches, right before step 40 of a run with this estimator."""
    (look,) = run(PROGRAM, row, 0, [40], 4, 0.0).looks
    return look.cosines[0]


@pytest.mark.parametrize("option", ["soba", "f2sa", "bome"])
def test_a_run_with_the_defaults_has_hypergradients_of_the_right_direction(option: str) -> None:
    assert cosine_to_exact(option) > 0.5


def test_this_measure_sees_a_second_copy_that_falls_behind_the_parameters() -> None:
    assert cosine_to_exact("f2sa follow=false steps=1") < 0
