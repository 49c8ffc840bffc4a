"""Learn the optimizer's hyperparameters while it trains (Franceschi et al. 2017, arXiv:1703.01785; Baydin et al. 2018,
arXiv:1703.04782)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem
from mlorun.errors import ConfigError

from .classification import Batch, Classifier
from .metrics import accuracy


class SgdHyperparameters(nn.Module):
    """lr and weight_decay by their logarithms, momentum in (0, 1) by its logit. Starts at these values."""

    def __init__(self, lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__()
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not value > 0:
                raise ConfigError(
                    f"{name} must be positive: it is learned by its logarithm", where=name, seen=f"{value}"
                )
        if not 0 < momentum < 1:
            raise ConfigError("momentum must lie in (0, 1)", where="momentum", seen=f"{momentum}")
        self.log_lr = nn.Parameter(torch.tensor(math.log(lr)))
        self.logit_momentum = nn.Parameter(torch.tensor(math.log(momentum / (1 - momentum))))
        self.log_weight_decay = nn.Parameter(torch.tensor(math.log(weight_decay)))

    def options(self) -> dict[str, Tensor]:
        """As torch.optim.SGD takes them, each ()."""
        return {
            "lr": self.log_lr.exp(),
            "momentum": self.logit_momentum.sigmoid(),
            "weight_decay": self.log_weight_decay.exp(),
        }


class TunedClassifier(Classifier):
    """Lower: cross entropy, by an optimizer whose options the problem `tuner` decides."""

    tuner: Tuner

    def optimizer_options(self) -> Mapping[str, Tensor]:
        return self.tuner.options()


class Tuner(Problem):
    """Upper: the classifier's cross entropy on held-out data, as a function of the options that trained it."""

    classifier: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self.classifier(inputs)
        return {
            "loss": F.cross_entropy(outputs, labels),
            "accuracy": lambda: accuracy(outputs, labels),
            **{name: partial(self._option, name) for name in ("lr", "momentum", "weight_decay")},
        }

    def options(self) -> dict[str, Tensor]:
        """What the module stands for at the moment."""
        options: dict[str, Tensor] = self.module.options()  # type: ignore[operator]
        return options

    def _option(self, name: str) -> Tensor:
        return self.options()[name]
