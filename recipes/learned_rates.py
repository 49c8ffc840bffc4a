"""A learning rate for each layer, learned by forward mode over whole trainings (Franceschi et al. 2017,
arXiv:1703.01785)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem
from mlorun.errors import ConfigError

from .classification import Batch
from .distillation import FreshClassifier
from .metrics import accuracy


class LearnedRates(nn.Module):
    """Learning rates by their logarithms, (count,), which all start at the same value."""

    def __init__(self, count: int, start: float) -> None:
        super().__init__()
        if not start > 0:
            raise ConfigError("a learning rate must be positive: it is learned by its logarithm", where="start")
        self.logs = nn.Parameter(torch.full((count,), math.log(start)))

    def forward(self) -> Tensor:
        return self.logs.exp()


class LayerwiseClassifier(FreshClassifier):
    """Lower: cross entropy from new random weights, each layer with the learning rate that the problem `rates` gives.

    With one rate, all layers have it.
    """

    rates: Problem

    def parameter_groups(self) -> Iterable[dict[str, Any]]:
        layers = (list(layer.parameters(recurse=False)) for layer in self.module.modules())
        return [{"params": parameters} for parameters in layers if parameters]

    def optimizer_options(self) -> Mapping[str, Tensor]:
        return {"lr": self.rates()}


class Rates(Problem):
    """Upper: the cross entropy on held-out data of the classifier that these learning rates have trained."""

    classifier: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self.classifier(inputs)
        rates = {f"rate_{layer}": (lambda layer=layer: self()[layer]) for layer in range(len(self()))}
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels), **rates}
