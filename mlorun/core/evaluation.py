"""A problem's metrics on a whole split: in eval mode, without gradients, and leaving no trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlorun.core.program.problem import metrics_of
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.data.batches import batch_length, ordered_batches


@dataclass(frozen=True)
class Evaluation:
    """`problem`'s evaluation_step on every batch of a split; metrics are named `prefix/metric`."""

    problem: str
    prefix: str
    split: Any
    batch_size: int

    def run(self, program: FunctionalProgram) -> dict[str, float]:
        """Means over the samples of the split, as numbers."""
        step = program.problems[self.problem].evaluation_step
        totals: dict[str, Tensor] = {}
        count = 0
        with program.evaluating():
            for batch in ordered_batches(self.split, self.batch_size, program.device):
                size = batch_length(batch)
                count += size
                for key, value in metrics_of(step(batch)).items():
                    part = value.detach().double() * size if value.device.type != "mps" else value.detach() * size
                    totals[key] = totals[key] + part if key in totals else part
        numbers = torch.stack([total / count for total in totals.values()]).tolist()
        return {f"{self.prefix}/{key}": number for key, number in zip(totals, numbers, strict=True)}
