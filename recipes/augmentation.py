"""Learned augmentation: an upper problem learns how large random deformations of the lower problem's images are
(Mounsaveng et al. 2021, arXiv:2006.14699, with free sizes in place of their network)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlorun import Metric, Problem

from .classification import Batch
from .deformation import AFFINE, ELASTIC, SHIFT
from .logit_adjustment import AdjustedClassifier, column_of_an_epoch, log_prior
from .metrics import accuracy

# images, labels, and which are of the balanced set
MarkedBatch = tuple[Tensor, Tensor, Tensor]


def as_often(column: Tensor, outputs: Tensor) -> Tensor:
    """The column of a batch (B,), repeated for deformations that give several images of each, (len(outputs),)."""
    return column.repeat(len(outputs) // len(column))


class AugmentedClassifier(AdjustedClassifier):
    """Lower: cross entropy of logits + log prior, on images that the problem `augmentation` deforms."""

    augmentation: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        images, labels = batch
        deformed = self.augmentation(images)
        return super().training_step((deformed, as_often(labels, deformed)))


class JoinedClassifier(AugmentedClassifier):
    """Lower: the same on two sets, of which the balanced one joins after `join_at` global steps.

    Until then its images are left out of every batch and of the prior.
    """

    def __init__(self, *, join_at: int, classes: int, **parts: Any) -> None:
        super().__init__(classes=classes, **parts)
        self.join_at = join_at
        labels, marks = (column_of_an_epoch(self, column) for column in (1, 2))
        self.first_prior = log_prior(labels[~marks], classes)

    def training_step(self, batch: MarkedBatch) -> Mapping[str, Metric]:  # type: ignore[override]
        images, labels, marks = batch
        outputs = self(self.augmentation(images))
        labels, marks = as_often(labels, outputs), as_often(marks, outputs)
        prior = self.log_prior if self.joined else self.first_prior
        losses = F.cross_entropy(outputs + prior, labels, reduction="none")
        weights = torch.ones_like(losses) if self.joined else (~marks).to(losses.dtype)
        return {
            "loss": (weights * losses).sum() / weights.sum(),
            "accuracy": lambda: accuracy(outputs, labels),
        }

    @property
    def joined(self) -> bool:
        """Whether the balanced set takes part in the step at hand."""
        return self.step >= self.join_at


class Augmentation(Problem):
    """Upper: the classifier's cross entropy on balanced images, neither deformed nor adjusted.

    freeze_at     after so many global steps the sizes stay at their running mean; None is never
    mean_decay    of that mean, per step of this problem
    """

    classifier: Problem

    def __init__(self, *, freeze_at: int | None, mean_decay: float, **parts: Any) -> None:
        super().__init__(**parts)
        self.freeze_at = freeze_at
        self.mean = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(mean_decay))

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self.classifier(inputs)
        kinds = {"shift": SHIFT, "affine": AFFINE, "elastic": ELASTIC}
        return {
            "loss": F.cross_entropy(outputs, labels),
            "accuracy": lambda: accuracy(outputs, labels),
            **{name: partial(self._size, kind) for name, kind in kinds.items()},
        }

    def _size(self, kind: int) -> Tensor:
        size: Tensor = self.module.size_of(kind)  # type: ignore[operator]
        return size

    @property
    def frozen(self) -> bool:
        """Whether the sizes stay as they are from the step at hand on."""
        return self.freeze_at is not None and self.step >= self.freeze_at

    def custom_optimizer_step(self) -> None:
        if not self.frozen:
            self.optimizer.step()

    def param_callback(self) -> None:
        if self.frozen:
            self.module.load_state_dict(self.mean.module.state_dict())
        else:
            self.mean.update_parameters(self.module)

    def on_run_end(self) -> None:
        """Save a row of eight balanced images, and five rows of the same deformed."""
        assert self.stream is not None
        images = self.stream.at({"epoch": 0, "position": 0})[0][:8]
        rows = [images, *(self.module(images)[: len(images)] for _ in range(5))]
        low, high = images.min(), images.max()
        self.save_artifact("deformed", (torch.cat(rows) - low) / (high - low))

    def state_dict(self) -> Mapping[str, Any]:
        return {"mean": self.mean.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean.load_state_dict(state["mean"])
