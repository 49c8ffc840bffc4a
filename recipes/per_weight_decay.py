"""One weight decay for each weight of a network (Lorraine et al. 2020, arXiv:1911.02590, section 5): as many
hyperparameters as parameters, by the implicit function theorem with a Neumann series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem

from .classification import Batch, Classifier
from .metrics import accuracy
from .modules import mlp


def log_decays(sizes: Sequence[int], bias: bool, start: float) -> nn.Sequential:
    """A number for each parameter of an mlp of these sizes: the logarithm of its decay, which starts at `start`."""
    numbers = mlp(sizes, dropout=0.0, bias=bias)
    with torch.no_grad():
        for number in numbers.parameters():
            number.fill_(start)
    return numbers


class DecayedClassifier(Classifier):
    """Lower: cross entropy plus sum over j of exp(a_j) w_j^2 / 2, with a from the problem `decays`."""

    decays: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        pairs = zip(self.decays.module.parameters(), self.module.parameters(), strict=True)
        penalty = sum(((a.exp() * w.square()).sum() for a, w in pairs), torch.zeros((), device=outputs.device)) / 2
        loss: Tensor = F.cross_entropy(outputs, labels) + penalty
        return {"loss": loss, "penalty": penalty, "accuracy": lambda: accuracy(outputs, labels)}


class Decays(Problem):
    """Upper: the classifier's cross entropy on validation data."""

    classifier: DecayedClassifier

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        return self.classifier.evaluation_step(batch)
