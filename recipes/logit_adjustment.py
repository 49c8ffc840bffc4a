"""Logit adjustment for long-tailed classes (Menon et al. 2021, arXiv:2007.07314): offsets are added to the logits in
training, left out in evaluation. They are the logarithms of the class frequencies, or an upper problem learns them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem

from .averaging import AveragedClassifier
from .classification import Batch
from .metrics import accuracy


def labels_of_an_epoch(problem: Problem) -> Tensor:
    """The labels of every batch in the first epoch of the problem's stream, which stays where it is."""
    assert problem.stream is not None
    places = ({"epoch": 0, "position": p} for p in range(problem.stream.batches_per_epoch))
    return torch.cat([problem.stream.at(place)[1] for place in places])


def log_prior(labels: Tensor, classes: int) -> Tensor:
    """Logarithms of the classes' frequencies, (classes,); a class that is not there counts as one image."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return (counts / counts.sum()).log()


class AdjustedClassifier(AveragedClassifier):
    """Cross entropy of logits + log prior, with the class frequencies of its own split. Equation 10 of the paper."""

    def __init__(self, *, classes: int, **parts: Any) -> None:
        super().__init__(**parts)
        self.log_prior = log_prior(labels_of_an_epoch(self), classes)

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        loss = F.cross_entropy(outputs + self.log_prior, labels)
        return {"loss": loss, "accuracy": lambda: accuracy(outputs, labels)}


class Offsets(nn.Module):
    """A number for each class, (classes,), all 0 at the start."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.offsets = nn.Parameter(torch.zeros(classes))

    def forward(self) -> Tensor:
        return self.offsets


class OffsetClassifier(AveragedClassifier):
    """Lower: cross entropy of logits + what the problem `offsets` decides."""

    offsets: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        return {
            "loss": F.cross_entropy(outputs + self.offsets(), labels),
            "accuracy": lambda: accuracy(outputs, labels),
        }
