"""Learning by ignoring: three levels (Zhao et al. 2020, arXiv:2012.14288).

Pretrain on weighted examples, finetune near the pretrained weights, and choose the example weights by the finetuned
network's loss on data held out. An example whose weight goes to zero is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from mlorun import Metric, Problem

from .classification import Batch, Classifier
from .metrics import accuracy

# images, labels, rows of the weight table, and whether the image was changed, which only metrics read
SourceBatch = tuple[Tensor, Tensor, Tensor, Tensor]


class PlainPretrain(Classifier):
    """The baseline's lowest level: every example counts the same."""

    def training_step(self, batch: SourceBatch) -> Mapping[str, Metric]:  # type: ignore[override]
        return self.evaluation_step(batch[:2])


class Pretrain(Classifier):
    """Level 1: cross entropy on the sources, each example weighted by `reweight`. Equation 1 of the paper."""

    reweight: Problem

    def training_step(self, batch: SourceBatch) -> Mapping[str, Metric]:  # type: ignore[override]
        inputs, labels, rows, changed = batch
        outputs = self(inputs)
        weights = self.reweight(rows)  # (B,)
        return {
            "loss": (weights * F.cross_entropy(outputs, labels, reduction="none")).mean(),
            "accuracy": lambda: accuracy(outputs, labels),
            "weight_unchanged": lambda: weights[~changed].mean(),
            "weight_changed": lambda: weights[changed].mean(),
        }


class Finetune(Classifier):
    """Level 2: cross entropy on the target, and the distance to the pretrained weights. Equation 2 of the paper."""

    pretrain: Problem

    def __init__(self, *, proximity: float, **problem: object) -> None:
        super().__init__(**problem)  # type: ignore[arg-type]
        self.proximity = proximity

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        metrics = dict(self.evaluation_step(batch))
        pairs = zip(self.module.parameters(), self.pretrain.module.parameters(), strict=True)
        distance = torch.stack([(mine - theirs).square().sum() for mine, theirs in pairs]).sum()
        return {**metrics, "loss": metrics["loss"] + self.proximity * distance, "distance": distance}  # type: ignore[operator]


class Ignore(Problem):
    """Level 3: the finetuned network's cross entropy on held-out target data. Equation 3 of the paper."""

    finetune: Finetune

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        return self.finetune.evaluation_step(batch)
