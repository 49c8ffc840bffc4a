"""Small networks that recipes and configs share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun.errors import ConfigError


def mlp(sizes: Sequence[int], dropout: float = 0.0, bias: bool = True) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them: (B, ...) with sizes[0] values each to (B, sizes[-1])."""
    if len(sizes) < 2:
        raise ConfigError("an mlp has at least an input and an output size", where="sizes", seen=f"{list(sizes)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        if index:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(inputs, outputs, bias=bias))
    return nn.Sequential(*layers)


class LeNet(nn.Module):
    """LeNet-5 with ReLU and max pooling (LeCun et al. 1998): (B, 1, 28, 28) to (B, classes)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 6, kernel_size=5, padding=2)
        self.second = nn.Conv2d(6, 16, kernel_size=5)
        self.head = mlp([16 * 5 * 5, 120, 84, classes])

    def forward(self, images: Tensor) -> Tensor:
        features = F.max_pool2d(F.relu(self.first(images)), 2)
        features = F.max_pool2d(F.relu(self.second(features)), 2)
        logits: Tensor = self.head(features)
        return logits


class WeightNet(nn.Module):
    """Meta-Weight-Net's weighting function, loss to weight in (0, 1): (B, inputs) to (B, 1)."""

    def __init__(self, inputs: int = 1, hidden: int = 100) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, 1)

    def forward(self, losses: Tensor) -> Tensor:
        weights: Tensor = self.output(F.relu(self.hidden(losses))).sigmoid()
        return weights


def resnet(depth: int, channels: int, classes: int) -> nn.Module:
    """torchvision's residual network of this depth, untrained: (B, channels, H, W) to (B, classes)."""
    import torchvision.models as models  # slow to import, and only this needs it

    builders = {18: models.resnet18, 34: models.resnet34, 50: models.resnet50, 101: models.resnet101}
    if depth not in builders:
        raise ConfigError(f"no resnet of depth {depth}", where="depth", fix=f"one of {sorted(builders)}")
    network: nn.Module = builders[depth](weights=None, num_classes=classes)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
    return network


class ExampleWeights(nn.Module):
    """A weight in (0, 1) for each example of a split, by its logit: rows (B,) to (B,). All start at `start`."""

    def __init__(self, examples: int, start: float) -> None:
        super().__init__()
        if not 0 < start < 1:
            raise ConfigError("a weight's start must lie in (0, 1)", where="start", seen=f"{start}")
        self.logits = nn.Parameter(torch.full((examples,), math.log(start / (1 - start))))

    def forward(self, rows: Tensor) -> Tensor:
        return self.logits[rows].sigmoid()
