"""Data hyper-cleaning: one weight for each training sample, some of which have a wrong label (Franceschi et al. 2017,
arXiv:1703.01785, section 5.1; as in 2018, arXiv:1806.04910, the weights are not constrained further)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import DataError, Metric, Problem

from .classification import Batch, Classifier
from .metrics import accuracy, area_under_curve, f1

# images, labels, rows in the train set, right labels (for metrics alone); see mlorun/data/label_noise.py
IndexedBatch = tuple[Tensor, Tensor, Tensor, Tensor]


class SampleWeights(nn.Module):
    """A weight in (0, 1) for each of `count` samples: rows (B,) to (B,). All start at 1/2."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(count))

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits[rows].sigmoid()


class CleanedClassifier(Classifier):
    """Lower: cross entropy on noisy data, each sample with the weight that `cleaner` gives it."""

    cleaner: Problem

    def training_step(self, batch: IndexedBatch) -> Mapping[str, Metric]:  # type: ignore[override]
        inputs, labels, rows, _ = batch
        outputs = self(inputs)
        losses = F.cross_entropy(outputs, labels, reduction="none")  # (B,)
        return {"loss": (self.cleaner(rows) * losses).mean(), "accuracy": lambda: accuracy(outputs, labels)}


class Cleaner(Problem):
    """Upper: the classifier's cross entropy on clean data. Evaluated by how well its weights find wrong labels.

    f1 counts a sample as chosen where its weight is above 1/2. Neither metric is a mean over samples: the evaluation
    batch must hold the whole split.
    """

    classifier: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self.classifier(inputs)
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}

    def evaluation_step(self, batch: IndexedBatch) -> Mapping[str, Metric]:
        _, given, rows, truth = batch
        kept = given == truth
        weights = self(rows)
        return {"auc": area_under_curve(weights, kept), "f1": f1(weights > 0.5, kept)}

    def on_run_end(self) -> None:
        (logits,) = self.theta
        self.save_artifact("weights", logits.sigmoid())


class RetrainedClassifier(Classifier):
    """The last stage: cross entropy on the training samples that the cleaner keeps, and on all of validation.

    weights   the file of them that a run of the cleaner has left: a sample is kept where its weight is above 1/2. None
              keeps the samples whose label is right, as an oracle would.
    """

    def __init__(self, *, weights: str | None, **problem: Any) -> None:
        super().__init__(**problem)
        self._kept = None if weights is None else _read(weights).to(self.theta[0].device) > 0.5

    def training_step(self, batch: IndexedBatch) -> Mapping[str, Metric]:  # type: ignore[override]
        inputs, labels, rows, truth = batch
        if self._kept is None:
            kept = labels == truth
        else:  # validation follows train
            kept = (rows >= len(self._kept)) | self._kept[rows.clamp(max=len(self._kept) - 1)]
        outputs = self(inputs)
        losses = F.cross_entropy(outputs, labels, reduction="none")
        return {"loss": losses[kept].mean(), "accuracy": lambda: accuracy(outputs[kept], labels[kept])}


def _read(file: str) -> Tensor:
    try:
        return torch.from_numpy(np.load(file, allow_pickle=False))
    except (OSError, ValueError) as error:
        fix = "a weights-*.npy in artifacts/ of a run of a hyper_cleaning experiment"
        raise DataError(
            "the weights of a cleaner cannot be read", where="weights", seen=str(error)[:200], fix=fix
        ) from error
