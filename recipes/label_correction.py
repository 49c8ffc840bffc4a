"""Two upper problems over one classifier: the weights of its examples (Meta-Weight-Net, Shu et al. 2019,
arXiv:1902.07379) and their corrected labels (Meta Label Correction, Zheng et al. 2021, arXiv:1911.03809)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem

from .classification import Classifier
from .metrics import accuracy

# images, given labels, rows of the table, right labels, which only metrics read
NoisyBatch = tuple[Tensor, Tensor, Tensor, Tensor]


class LabelTable(nn.Module):
    """What each example's label is corrected by: (given (B,), rows (B,)) to probabilities (B, classes).

    trust   the logit of the given label at the start, above the others
    """

    def __init__(self, examples: int, classes: int, trust: float) -> None:
        super().__init__()
        self.correction = nn.Parameter(torch.zeros(examples, classes))
        self.trust = trust

    def forward(self, given: Tensor, rows: Tensor) -> Tensor:
        correction = self.correction[rows]
        return (self.trust * F.one_hot(given, correction.shape[1]) + correction).softmax(dim=1)


class CorrectedClassifier(Classifier):
    """Lower: cross entropy with labels of the problem `labels`, each example weighted by the problem `weights`."""

    weights: Problem
    labels: Problem

    def training_step(self, batch: NoisyBatch) -> Mapping[str, Metric]:  # type: ignore[override]
        inputs, given, rows, truth = batch
        outputs = self(inputs)
        targets = self.labels(given, rows)  # (B, classes)
        losses = F.cross_entropy(outputs, targets, reduction="none")[:, None]  # (B, 1)
        weights = self.weights(losses.detach())  # (B, 1)
        wrong = given != truth
        return {
            "loss": (weights * losses).mean(),
            "accuracy": lambda: accuracy(outputs, truth),
            "labels_right": lambda: accuracy(targets, truth),
            "weight_right": lambda: weights[~wrong].mean(),
            "weight_wrong": lambda: weights[wrong].mean(),
        }
