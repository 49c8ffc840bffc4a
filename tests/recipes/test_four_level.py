"""four_level ends at its optimum, which is known."""

from __future__ import annotations

import pytest
import torch
from mlorun.recipes.four_level import LEVELS, RIDGE, draw_constants, optimum

from tests.hypergradient.resolving import argmin
from tests.recipes.runs import metrics

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_the_optimum_is_that_of_nested_argmins() -> None:
    """Top by Newton's method, with the answer of each level below by Newton's method, at the first three levels held
    to the closed form of a program whose top asks for a constant."""
    constants = draw_constants(0, 2)
    known = optimum(constants)

    def first(second: torch.Tensor) -> torch.Tensor:
        matrix, target = constants[0]
        return argmin(lambda x: ((x - matrix @ second).square().sum() + (x - target).square().sum()) / 2, target)

    def second(third: torch.Tensor) -> torch.Tensor:
        matrix, target = constants[1]
        return argmin(lambda x: ((x - matrix @ third).square().sum() + (first(x) - target).square().sum()) / 2, target)

    answer = second(known["third"])
    assert torch.allclose(answer, known["second"], atol=1e-8)
    assert torch.allclose(first(answer), known["first"], atol=1e-8)


def test_the_top_of_the_optimum_is_stationary() -> None:
    """By differences of the top's loss, the three levels below solved again for each top."""
    constants = draw_constants(0, 2)
    known = optimum(constants)

    def below(top: torch.Tensor) -> torch.Tensor:
        """The bottom's answer: the joint equations of the three levels, by coordinate steps until they hold."""
        matrices, targets = zip(*constants, strict=True)
        eye = torch.eye(2, dtype=torch.float64)
        down_first = matrices[0] / 2  # d first / d second
        h_second = eye + down_first.T @ down_first
        down_second = down_first @ torch.linalg.solve(h_second, matrices[1])  # d first / d third
        second, third = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
        for _ in range(500):
            first = (matrices[0] @ second + targets[0]) / 2
            second = second - 0.5 * (second - matrices[1] @ third + down_first.T @ (first - targets[1]))
            third = third - 0.5 * (third - matrices[2] @ top + down_second.T @ (first - targets[2]))
        return (matrices[0] @ second + targets[0]) / 2

    def value(top: torch.Tensor) -> float:
        return float((RIDGE * top.square().sum() + (below(top) - constants[3][1]).square().sum()) / 2)

    for unit in torch.eye(2, dtype=torch.float64):
        h = 1e-4 * unit
        assert abs(value(known["fourth"] + h) - value(known["fourth"] - h)) / 2e-4 < 1e-6


@pytest.mark.parametrize("seed", [0, 1])
def test_every_level_ends_within_a_millionth_of_the_optimum(seed: int) -> None:
    end = metrics("four_level", f"seed={seed}")
    assert {name: end[f"{name}/distance"] < 1e-6 for name in LEVELS} == dict.fromkeys(LEVELS, True)


def test_without_the_second_derivatives_of_the_total_losses_the_top_ends_elsewhere() -> None:
    assert metrics("four_level_baseline")["fourth/distance"] > 0.01
