"""prior_of_penalties against solving the whole program again by Newton's method, in each level."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from tests.hypergradient.resolving import Solved
from tests.recipes.runs import engine

pytestmark = pytest.mark.usefixtures("empty_folder")


def value(program: Engine) -> float:
    """The prior's strength, by its logarithm."""
    (log_strength,) = program.problems["prior"].theta
    return float(log_strength.detach())


def solved(program: Engine, log_strength: float) -> Solved:
    """The same program on the same data as nested argmins, at this strength of the prior."""
    data = {name: problem.stream.split for name, problem in program.problems.items()}

    def error(name: str, weights: Tensor) -> Tensor:
        x, y = data[name]
        return (x @ weights - y).square().mean() / 2

    def fit(p: Mapping[str, Tensor]) -> Tensor:
        return error("fit", p["fit"]) + (p["penalties"].exp() * p["fit"].square()).sum() / 2

    def penalties(p: Mapping[str, Tensor]) -> Tensor:
        return error("penalties", p["fit"]) + (p["prior"].exp() * p["penalties"].square()).sum() / 2

    losses = {"fit": fit, "penalties": penalties, "prior": lambda p: error("prior", p["fit"])}
    graph = ProblemGraph.build(
        list(losses), {"prior": ["penalties"], "penalties": ["fit"]}, {"fit": ["penalties", "prior"]}
    )
    zeros = torch.zeros(4, dtype=torch.float64)
    start = torch.tensor([log_strength], dtype=torch.float64)
    return Solved(losses, graph, {"fit": zeros, "penalties": zeros, "prior": start})


def slope(program: Engine, log_strength: float) -> float:
    """Of the top's loss in the logarithm of the strength, everything below solved again."""
    return float(solved(program, log_strength).slope("prior")[0])


@pytest.mark.parametrize("seed", [1, 2])
def test_the_hypergradient_of_the_prior_is_that_of_solving_all_levels_again(seed: int) -> None:
    program = engine("prior_of_penalties", f"seed={seed}", "prior.optimizer.lr=0", "engine.train_iters=2000")
    program.run()
    assert float(program.gradient("prior")[0]) == pytest.approx(slope(program, -1.5), rel=1e-3)


@pytest.mark.slow
def test_the_prior_ends_where_the_solved_program_has_its_least_loss() -> None:
    program = engine("prior_of_penalties", "seed=1")
    program.run()
    end = value(program)
    assert slope(program, end - 0.1) < 0 < slope(program, end + 0.1)
