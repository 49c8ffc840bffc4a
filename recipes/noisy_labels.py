"""Meta-Weight-Net on wrong labels (Shu et al. 2019, arXiv:1902.07379): weights that sum to one in each batch.

The weight net begins after a warm-up of the classifier: before it, high losses are those of hard samples, all weights
go to 1, and the sigmoid stays there.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as F

from mlorun import Metric

from .classification import Batch
from .metrics import accuracy
from .reweighting import WeightedClassifier


class NormalizedClassifier(WeightedClassifier):
    """Lower: cross entropy, each sample weighted by what `reweight` makes of its loss, relative to the batch."""

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        losses = F.cross_entropy(outputs, labels, reduction="none")[:, None]  # (B, 1)
        weights = self.reweight(losses.detach())  # (B, 1)
        loss = (weights * losses).sum() / weights.sum().clamp(min=1e-6)
        return {"loss": loss, "accuracy": lambda: accuracy(outputs, labels)}
