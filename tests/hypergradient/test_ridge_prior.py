"""A nested program of practice: a prior over the ridge penalties that a validation set tunes.

Bottom fits a regression with a penalty of its own for every weight; middle tunes the logarithms of the penalties on one
validation set, under a prior that pulls them to zero; top learns the prior's strength on another. Against solving the
whole program again.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.estimator import Hypergradient, Nested
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.exact import Exact
from tests.hypergradient.resolving import Solved

WEIGHTS, ROWS, NOISE = 4, 12, 1.0
SEEDS = range(5)


def ridge(seed: int) -> Solved:
    draw = torch.Generator().manual_seed(seed)
    truth = torch.tensor([2.0, 1.0, 0.3, 0.0], dtype=torch.float64)

    def sample() -> tuple[Tensor, Tensor]:
        x = torch.randn(ROWS, WEIGHTS, generator=draw, dtype=torch.float64)
        return x, x @ truth + NOISE * torch.randn(ROWS, generator=draw, dtype=torch.float64)

    train, tune, judge = sample(), sample(), sample()

    def error(split: tuple[Tensor, Tensor], beta: Tensor) -> Tensor:
        return (split[0] @ beta - split[1]).square().mean() / 2

    losses = {
        "bottom": lambda p: error(train, p["bottom"]) + (p["middle"].exp() * p["bottom"].square()).sum() / 2,
        "middle": lambda p: error(tune, p["bottom"]) + (p["top"].exp() * p["middle"].square()).sum() / 2,
        "top": lambda p: error(judge, p["bottom"]),
    }
    graph = ProblemGraph.build(list(losses), {"top": ["middle"], "middle": ["bottom"]}, {"bottom": ["middle", "top"]})
    starts = {
        "bottom": torch.zeros(WEIGHTS, dtype=torch.float64),
        "middle": torch.zeros(WEIGHTS, dtype=torch.float64),
        "top": torch.tensor([-1.5], dtype=torch.float64),
    }
    return Solved(losses, graph, starts)


def gradient(program: Solved, nested: Nested) -> float:
    def exact(name: str) -> Hypergradient:
        return Implicit(Exact(0.0, 100), DoubleBackward(), "after", nested)

    return float(program.gradient("top", exact)[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_whole_derivative_is_that_of_solving_everything_again(seed: int) -> None:
    program = ridge(seed)
    assert gradient(program, "full") == pytest.approx(float(program.slope("top")[0]), rel=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_cheaper_choices_are_off_and_gauss_newton_less(seed: int) -> None:
    program = ridge(seed)
    truth = float(program.slope("top")[0])
    gauss_newton, own_loss = (abs(gradient(program, nested) / truth - 1) for nested in ("gauss_newton", "own_loss"))
    assert 0.05 < gauss_newton < own_loss / 2
    assert own_loss > 0.5
