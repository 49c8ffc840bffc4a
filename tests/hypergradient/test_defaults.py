"""Out of the box, estimators that keep something between calls point where the exact hypergradient points."""

from __future__ import annotations

import pytest

from tests.benchmarks.default_cosines import run


@pytest.fixture(autouse=True)
def float64() -> None:
    """In place of the folder's: runs are in float32, as their config has it."""


# a lower problem with a definite Hessian: elsewhere the exact hypergradient is what its damping makes of it
PROGRAM = ("experiment=mwn_digits", "classifier.optimizer.weight_decay=0.01")


@pytest.mark.parametrize("option", ["soba", "f2sa", "bome"])
def test_a_run_with_the_defaults_has_hypergradients_of_the_right_direction(option: str) -> None:
    looks = run(PROGRAM, option, 0, [30, 60], 4, 0.0).looks
    assert [look.step for look in looks] == [30, 60]
    assert min(look.cosines[0] for look in looks) > 0.5


@pytest.mark.parametrize("option", ["f2sa", "bome"])
def test_a_second_copy_that_falls_behind_the_parameters_points_the_wrong_way(option: str) -> None:
    (look,) = run(PROGRAM, f"{option} follow=false", 0, [30], 4, 0.0).looks
    assert look.cosines[0] < 0
