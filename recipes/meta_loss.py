"""A learned loss function, by which fresh networks learn from wrong labels what clean ones would teach (ML3, Bechtle et
al. 2021, arXiv:1906.05374)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .few_shot import Classification, Points, Weights


class LossNet(nn.Module):
    """The sum over classes of a small network of (probability, label): (..., classes) and (...) to (...)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 1, bias=False))

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        probabilities = outputs.softmax(-1)
        truth = F.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
        terms: Tensor = self.network(torch.stack([probabilities, truth], dim=-1))
        return terms.sum((-2, -1))


class ScaledCrossEntropy(nn.Module):
    """The baseline's loss: cross entropy times a learned number, which is as good as a learned learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        losses = F.cross_entropy(outputs.flatten(0, -2), labels.flatten(), reduction="none")
        return self.log_scale.exp() * losses.view(labels.shape)


class TaughtLearner(Classification):
    """Lower: tasks by the loss of the problem `meta`, each from random weights of its own. Equation 1 of the paper."""

    def objective(self, weights: Weights, support: Points) -> Tensor:
        inputs, targets = support
        losses: Tensor = self.meta(self.outputs(weights, inputs), targets)
        return losses.mean(1).sum()

    def starts(self, tasks: int) -> Weights:
        """Drawn as torch initializes linear layers."""
        layers = [layer for layer in self.module.modules() if isinstance(layer, nn.Linear)]
        drawn = [(layer.in_features**-0.5, p) for layer in layers for p in layer.parameters()]
        return tuple(p.new_empty(tasks, *p.shape).uniform_(-bound, bound) for bound, p in drawn)

    def initial_parameters(self) -> None:
        """Nobody learns the start."""

    def on_inner_loop_start(self) -> None:
        super().on_inner_loop_start()
        self.restart()
