"""Plain classification: cross entropy and accuracy."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from mlorun import Metric, Problem

from .metrics import accuracy

Batch = tuple[Tensor, Tensor]


class Classifier(Problem):
    """Minimizes the mean cross entropy of (inputs, labels)."""

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        return self.evaluation_step(batch)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}
