"""Plain classification: cross entropy, and the metrics that every classification recipe shares."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

from mlorun import Metric, Problem

Batch = tuple[Tensor, Tensor]


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers in percent, (). `outputs` (B, classes), `labels` (B,)."""
    return 100.0 * (outputs.detach().argmax(dim=1) == labels).float().mean()


class Classifier(Problem):
    """Minimizes the mean cross entropy of (inputs, labels)."""

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        return self.evaluation_step(batch)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}
