"""Dataset distillation: a few learned images that train a network (Wang et al. 2018, arXiv:1811.10959)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mlorun import Metric, Problem

from .classification import Batch, Classifier


class LearnedImages(nn.Module):
    """Images (classes * per_class, *shape) that start as noise; called, it gives them with their fixed labels."""

    labels: Tensor

    def __init__(self, classes: int, per_class: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.images = nn.Parameter(torch.randn(classes * per_class, *shape))
        self.register_buffer("labels", torch.arange(classes).repeat_interleave(per_class))

    def forward(self) -> Batch:
        return self.images, self.labels


class FreshClassifier(Classifier):
    """A classifier whose every inner loop starts from new random weights, which its layers draw."""

    def on_inner_loop_start(self) -> None:
        for layer in self.module.modules():
            draw = getattr(layer, "reset_parameters", None)
            if draw is not None:
                draw()
        self.optimizer.state.clear()


class Student(FreshClassifier):
    """Lower: cross entropy on the learned images alone. Equation 1 of the paper."""

    images: Problem

    def get_batch(self) -> None:
        """The images are the batch."""

    def training_step(self, batch: None) -> Mapping[str, Metric]:  # type: ignore[override]
        return self.evaluation_step(self.images())


class Distiller(Problem):
    """Upper: the student's cross entropy on real images, after its inner loop. Equation 5 of the paper."""

    student: Student

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        return self.student.evaluation_step(batch)
