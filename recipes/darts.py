"""Differentiable architecture search (DARTS, Liu et al. 2019, arXiv:1806.09055): a cell's operations by gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem

from .cell_picture import cell_picture
from .cells import OPERATIONS, derived, edges
from .classification import Batch, Classifier
from .metrics import accuracy


class ArchitectureWeights(nn.Module):
    """A softmax over the operations of each edge of a cell: () to (edges, operations). Equation 2 of the paper."""

    def __init__(self, nodes: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(1e-3 * torch.randn(len(edges(nodes)), len(OPERATIONS)))

    def forward(self) -> Tensor:
        return self.logits.softmax(dim=1)


class MixedNetwork(Classifier):
    """Lower: cross entropy of the network of mixed operations on train data. Equation 4."""

    architecture: Problem

    def evaluation_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self(inputs, self.architecture().flatten().unbind())
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}


class Architecture(Problem):
    """Upper: cross entropy of the same network on data held out. Equation 3. Leaves the derived cell as an artifact."""

    network: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        inputs, labels = batch
        outputs = self.network(inputs, self().flatten().unbind())
        return {"loss": F.cross_entropy(outputs, labels), "accuracy": lambda: accuracy(outputs, labels)}

    def on_run_end(self) -> None:
        links = derived(self())
        self.save_artifact("genotype", "".join(f"{link}\n" for link in links))
        self.save_artifact("cell", cell_picture(links))
