"""Parts of programs for tests: a third level above reweighting, and digits as a Dataset with random transforms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from mlorun import Problem
from mlorun.data.digits import digits_long_tailed


class Middle(Problem):
    """Reweighting, with a penalty whose strength the top problem learns."""

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        strength = sum(parameter.square().sum() for parameter in self.top.module.parameters())
        weights = sum(parameter.square().sum() for parameter in self.module.parameters())
        return F.cross_entropy(self.classifier(inputs), labels) + strength * weights / 1000


class Top(Problem):
    """The strength by which the classifier does best."""

    def training_step(self, batch: Any) -> Tensor:
        inputs, labels = batch
        return F.cross_entropy(self.classifier(inputs), labels)


class Shifted(Dataset[Any]):
    """Images that are shifted at random: every fetch draws numbers."""

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels = inputs, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        shift = int(torch.randint(-1, 2, ()))
        return self.inputs[row].roll(shift), self.labels[row]


def shifted_digits(**kwargs: Any) -> Mapping[str, Any]:
    """The splits of `digits_long_tailed`, those for training as Datasets."""
    splits = digits_long_tailed(**kwargs)
    return {name: Shifted(*split) if name in ("train", "balanced") else split for name, split in splits.items()}
