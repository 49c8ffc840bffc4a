"""Few-shot baselines that learn no adaptation: one network pretrained on everything, then adapted to each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mlorun import Metric, Problem

from .classification import Batch
from .few_shot import Tasks, Weights, adapted, side_by_side
from .metrics import accuracy


class PretrainedRegression(Problem):
    """Squared error on the points of all tasks; a new task fine-tunes all weights (Finn et al. 2017, section 5.1).

    rate, evaluate_after   of gradient descent on new tasks; the steps after which they are evaluated
    """

    def __init__(self, *, rate: float, evaluate_after: Sequence[int], **problem: Any) -> None:
        super().__init__(**problem)
        self.rate = rate
        self.evaluate_after = tuple(evaluate_after)

    def training_step(self, batch: Tasks) -> Tensor:
        inputs, targets = (torch.cat(parts, dim=1) for parts in zip(batch["support"], batch["query"], strict=True))
        return F.mse_loss(self(inputs.flatten(0, 1)), targets.flatten(0, 1))

    def evaluation_step(self, batch: Tasks) -> Mapping[str, Metric]:
        def errors(weights: Weights, points: tuple[Tensor, Tensor]) -> Tensor:
            return (side_by_side(self.module, weights, points[0]) - points[1]).square().flatten(1).mean(1)

        return adapted(
            tuple(p.expand(len(batch["support"][0]), *p.shape) for p in self.module.parameters()),
            lambda weights: errors(weights, batch["support"]).sum(),
            lambda weights: {"error": errors(weights, batch["query"]).mean()},
            self.rate,
            self.evaluate_after,
        )


class PretrainedClassifier(Problem):
    """Cross entropy on all training classes. New classes by its features, the inputs of its last layer: the nearest
    mean of a class's support features (Snell et al. 2017, arXiv:1703.05175), or a new head trained on them.

    rate, evaluate_after   of the new heads' gradient descent from zero; the steps after which they are evaluated
    """

    def __init__(self, *, rate: float, evaluate_after: Sequence[int], **problem: Any) -> None:
        super().__init__(**problem)
        self.rate = rate
        self.evaluate_after = tuple(evaluate_after)

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs)
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}

    def evaluation_step(self, batch: Tasks) -> Mapping[str, Metric]:
        (support, labels), (query, targets) = (
            (self._features(inputs), labels) for inputs, labels in (batch["support"], batch["query"])
        )
        chosen = F.one_hot(labels).to(support.dtype)  # (tasks, points, ways)
        means = chosen.transpose(1, 2) @ support / chosen.sum(1)[:, :, None]
        nearest = torch.cdist(query, means).argmin(2)
        head = (support.new_zeros(len(support), chosen.shape[2], support.shape[2] + 1),)

        def outputs(weights: Weights, features: Tensor) -> Tensor:
            logits: Tensor = F.pad(features, (0, 1), value=1.0) @ weights[0].mT
            return logits

        return {
            "accuracy_nearest_mean": 100 * (nearest == targets).float().mean(),
            **adapted(
                head,
                lambda w: F.cross_entropy(outputs(w, support).transpose(1, 2), labels, reduction="none").mean(1).sum(),
                lambda w: {"accuracy": 100 * (outputs(w, query).argmax(2) == targets).float().mean()},
                self.rate,
                self.evaluate_after,
            ),
        }

    def _features(self, inputs: Tensor) -> Tensor:
        """(tasks, points, features)"""
        features: Tensor = self.module[:-1](inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])  # type: ignore[index]
        return features
