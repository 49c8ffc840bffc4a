"""Four levels of quadratic problems with a known optimum (for nested levels see Sato et al. 2021, arXiv:2108.11694).

Level k has a vector x_k and the loss norm(x_k - M_k x_(k+1))^2 / 2 + norm(x_1 - t_k)^2 / 2, where x_1 is the bottom's:
it is pulled to what the level above asks for, and pulls the bottom to a target of its own. The top has a ridge in place
of the first part. M_k and t_k are drawn from a seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlorun import Metric, Problem
from mlorun.run.seeds import derive_seed

LEVELS = ("first", "second", "third", "fourth")  # the bottom first
RIDGE = 0.2


def draw_constants(seed: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """(M_k, t_k) of each level, float64; M_k is near the identity."""
    draw = torch.Generator().manual_seed(derive_seed(seed, "four_level"))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return [(torch.eye(size, dtype=torch.float64) + 0.2 * normal(size, size), normal(size)) for _ in LEVELS]


def optimum(constants: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The vector of each level where all are solved, each with the optima of those below as functions of its own."""
    slope, offset = torch.eye(len(constants[0][1]), dtype=torch.float64), torch.zeros_like(constants[0][1])
    answers = []  # x_k = answer x_(k+1) + constant
    for level, (matrix, target) in enumerate(constants):  # x_1 = slope x_k + offset
        own = RIDGE if level == 3 else 1.0
        hessian = own * torch.eye(len(target), dtype=torch.float64) + slope.T @ slope
        answer = torch.linalg.solve(hessian, matrix)
        constant = torch.linalg.solve(hessian, slope.T @ (target - offset))
        answers.append((answer, constant))
        slope, offset = slope @ answer, slope @ constant + offset
    vectors = [answers[-1][1]]
    for answer, constant in reversed(answers[:-1]):
        vectors.insert(0, answer @ vectors[0] + constant)
    return dict(zip(LEVELS, vectors, strict=True))


class Level(Problem):
    """The level of its name. Reports its distance from the optimum. It makes its own data, so it has no split."""

    def __init__(self, *, seed: int, **problem: Any) -> None:
        super().__init__(**problem)
        constants = draw_constants(seed, self.theta[0].numel())
        self._matrix, self._target = constants[LEVELS.index(self.name)]
        self._optimum = optimum(constants)[self.name]

    def get_batch(self) -> None:
        return None

    def training_step(self, batch: None) -> Mapping[str, Metric]:
        (own,), (first,) = self.theta, self.theta if self.name == "first" else self.first.theta
        if self.name == "fourth":
            pull = RIDGE * own.square().sum()
        else:
            (above,) = getattr(self, LEVELS[LEVELS.index(self.name) + 1]).theta
            pull = (own - self._matrix @ above).square().sum()
        loss = (pull + (first - self._target).square().sum()) / 2
        return {"loss": loss, "distance": lambda: (own - self._optimum).norm()}
