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
from mlorun.data.stream import MemoryStream

from .classification import Batch
from .deformation import AFFINE, ELASTIC, SHIFT, Deformation
from .logit_adjustment import AdjustedClassifier
from .metrics import accuracy

# images, labels, and which are of the balanced set
MarkedBatch = tuple[Tensor, Tensor, Tensor]


class AugmentedClassifier(AdjustedClassifier):
    """Lower: cross entropy of logits + log prior, on images that the problem `augmentation` deforms."""

    augmentation: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        images, labels = batch
        deformed = self.augmentation(images)
        # a deformation may give several images of each
        return super().training_step((deformed, labels.repeat(len(deformed) // len(labels))))


class JoinedClassifier(AugmentedClassifier):
    """Lower: the same on two sets, of which the balanced one joins after `join_at` global steps.

    Until then an image of the other set, of the same class, stands in for every balanced one, drawn anew each time.
    """

    def __init__(self, *, join_at: int, classes: int, **parts: Any) -> None:
        super().__init__(classes=classes, **parts)
        self.join_at = join_at
        assert isinstance(self.stream, MemoryStream)
        images: Tensor
        images, labels, marks = self.stream.split
        self.images = images
        rows = [torch.nonzero((labels == label) & ~marks).flatten() for label in range(classes)]
        self.rows, self.counts = torch.cat(rows), torch.tensor([len(each) for each in rows], device=labels.device)
        self.starts = self.counts.cumsum(0) - self.counts

    def training_step(self, batch: MarkedBatch) -> Mapping[str, Metric]:  # type: ignore[override]
        images, labels, marks = batch
        if not self.joined:
            images = torch.where(marks.view(-1, 1, 1, 1), self.stand_ins(labels), images)
        return super().training_step((images, labels))

    def stand_ins(self, labels: Tensor) -> Tensor:
        """For each label (B,) an image of its class that is not of the balanced set, drawn at random, (B, 1, H, W)."""
        drawn = torch.rand(len(labels), device=labels.device, dtype=torch.float64) * self.counts[labels]
        return self.images.index_select(0, self.rows[self.starts[labels] + drawn.long()])

    @property
    def joined(self) -> bool:
        """Whether the balanced set takes part in the step at hand."""
        return self.step >= self.join_at


class Augmentation(Problem):
    """Upper: the classifier's cross entropy on balanced images, neither deformed nor adjusted.

    freeze_at     after so many global steps the sizes stay at their running mean; None is never
    mean_decay    of that mean, per step of this problem
    """

    module: Deformation
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
            "size": self.module.size,
            **{name: partial(self.module.size_of, kind) for name, kind in kinds.items()},
        }

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
