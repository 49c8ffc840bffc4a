"""Small programs that several tests run."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.evaluation import Evaluation
from mlorun.core.program.problem import Problem
from mlorun.data.stream import stream


class Classify(Problem):
    """Cross entropy of a linear classifier."""

    def training_step(self, batch: Any) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])


def single(*, evaluated: bool = False, **engine: Any) -> Engine:
    """One problem alone, called `only`."""
    draw = torch.Generator().manual_seed(1)
    split = (torch.randn(16, 3, generator=draw), torch.randint(2, (16,), generator=draw))
    problem = Classify(
        name="only",
        module=nn.Linear(3, 2),
        optimizer=lambda theta: torch.optim.SGD(theta, lr=0.1),
        stream=stream(split, batch_size=4, seed=0, name="only", device=torch.device("cpu")),
    )
    evaluations = [Evaluation("only", "test", split, 4)] if evaluated else []
    return Engine([problem], evaluations=evaluations, **engine)
