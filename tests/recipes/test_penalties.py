"""ridge_hpo against its closed form, logistic_hpo against a penalty for all and against none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.recipes.runs import engine, metrics

pytestmark = pytest.mark.usefixtures("empty_folder")


def validation_error(program: object, log_penalty: float) -> float:
    """Of ridge regression in closed form, as a function of the logarithm of its penalty."""
    streams = {name: problem.stream for name, problem in program.problems.items()}  # type: ignore[attr-defined]
    (x, y), (validation_x, validation_y) = streams["fit"].split, streams["penalties"].split
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    hessian: Tensor = x.T @ x / len(x) + torch.tensor(log_penalty, dtype=torch.float64).exp() * eye
    weights = torch.linalg.solve(hessian, x.T @ y / len(x))
    return float((validation_x @ weights - validation_y).square().mean() / 2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_ridge_penalty_is_the_best_one_in_closed_form(seed: int) -> None:
    program = engine("ridge_hpo", f"seed={seed}")
    grid = [-6 + 0.01 * step for step in range(1000)]
    best = min(grid, key=lambda log_penalty: validation_error(program, log_penalty))
    assert -5 < best < 3
    program.run()
    (log_penalty,) = program.problems["penalties"].theta
    assert float(log_penalty.detach()) == pytest.approx(best, abs=0.02)


def test_a_penalty_for_each_weight_is_better_than_the_start() -> None:
    tuned, fixed = (metrics(name)["selection/error"] for name in ("logistic_hpo", "logistic_hpo_baseline"))
    assert tuned < fixed - 0.03


@pytest.mark.slow
def test_logistic_hpo_reaches_its_range() -> None:
    seeds = range(5)
    tuned, fixed = (
        sum(metrics(name, f"seed={seed}")["test/accuracy"] for seed in seeds) / len(seeds)
        for name in ("logistic_hpo", "logistic_hpo_baseline")
    )
    assert tuned > fixed + 2  # recipes/README.md
