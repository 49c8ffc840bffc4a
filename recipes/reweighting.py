"""Meta-Weight-Net: learn each sample's weight from its loss (Shu et al. 2019, arXiv:1902.07379)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from mlorun import Metric, Problem

from .classification import Batch, Classifier
from .metrics import accuracy


class WeightedClassifier(Classifier):
    """Lower: cross entropy, each sample weighted by what `reweight` makes of its loss. Equation 2 of the paper."""

    reweight: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        losses = F.cross_entropy(outputs, labels, reduction="none")[:, None]  # (B, 1)
        weights = self.reweight(losses.detach())  # (B, 1)
        return {"loss": (weights * losses).mean(), "accuracy": lambda: accuracy(outputs, labels)}


class ClassAwareClassifier(Classifier):
    """Lower: as WeightedClassifier, where `reweight` sees the label of a sample beside its loss.

    classes   how many there are
    """

    reweight: Problem

    def __init__(self, *, classes: int, **parts: Any) -> None:
        super().__init__(**parts)
        self.classes = classes

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        losses = F.cross_entropy(outputs, labels, reduction="none")[:, None]  # (B, 1)
        seen = torch.cat([losses.detach(), F.one_hot(labels, self.classes)], dim=1)
        weights = self.reweight(seen)  # (B, 1)
        return {"loss": (weights * losses).mean(), "accuracy": lambda: accuracy(outputs, labels)}


class Reweight(Problem):
    """Upper: the classifier's cross entropy on balanced data. Equation 3 of the paper."""

    classifier: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self.classifier(inputs)
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}
