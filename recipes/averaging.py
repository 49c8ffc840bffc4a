"""A classifier that is evaluated at the running mean of its weights (Polyak & Juditsky 1992; Tarvainen & Valpola 2017,
arXiv:1703.01780)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlorun import Metric

from .classification import Batch, Classifier
from .metrics import accuracy


class AveragedClassifier(Classifier):
    """Cross entropy, evaluated at `average`: a module of its own, average <- decay average + (1 - decay) weights after
    every optimizer step. It starts at the first weights that a step gave."""

    def __init__(self, *, average_decay: float, **parts: Any) -> None:
        super().__init__(**parts)
        self.average = AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(average_decay)).eval()

    def param_callback(self) -> None:
        self.average.update_parameters(self.module)

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        return super().evaluation_step(batch)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self.average(inputs)
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}

    def state_dict(self) -> Mapping[str, Any]:
        return {"average": self.average.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
