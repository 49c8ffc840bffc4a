"""One L2 penalty for each weight of a linear model, chosen on validation data (Lorraine et al. 2020, arXiv:1911.02590).

The logistic program is the first example of Betty (Choe et al. 2022, arXiv:2207.02849).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem

Batch = tuple[Tensor, Tensor]  # x (N, features), y (N,)


class Weights(nn.Module):
    """A vector of parameters that start at `start`, float64: x (N, size) to x'w (N,)."""

    def __init__(self, size: int, start: float) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((size,), start, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = x @ self.weights
        return outputs


def weights_of(problem: Problem) -> Tensor:
    """The vector of parameters of a problem whose module is Weights."""
    weights: Tensor = problem.module.weights  # type: ignore[assignment]
    return weights


class Fit(Problem):
    """Lower: the error on the train split plus sum over j of exp(a_j) w_j^2 / 2, with a from `penalties`."""

    penalties: Problem

    @abstractmethod
    def error(self, batch: Batch) -> Tensor:
        """Mean error of the model on a batch, ()."""

    def training_step(self, batch: Batch) -> Tensor:
        return self.error(batch) + (weights_of(self.penalties).exp() * weights_of(self).square()).sum() / 2

    def evaluation_step(self, batch: Batch) -> Mapping[str, Metric]:
        return {"error": self.error(batch)}


class RidgeFit(Fit):
    """Half the mean squared error."""

    def error(self, batch: Batch) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), y) / 2


class LogisticFit(Fit):
    """The logistic loss; also evaluated by its accuracy in percent."""

    def error(self, batch: Batch) -> Tensor:
        x, y = batch
        return F.binary_cross_entropy_with_logits(self(x), y)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Metric]:
        x, y = batch
        return {"error": self.error(batch), "accuracy": 100 * ((self(x) > 0) == (y > 0)).double().mean()}


class Penalties(Problem):
    """Upper: the fitted model's error on the validation split."""

    fit: Fit

    def training_step(self, batch: Batch) -> Tensor:
        return self.fit.error(batch)
