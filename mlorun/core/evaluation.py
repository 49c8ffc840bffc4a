"""A problem's metrics on a whole split: in eval mode, without gradients, and leaving no trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlorun.core.program.problem import metrics_of
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.data.batches import batch_length, ordered_batches


@dataclass(frozen=True)
class Evaluation:
    """`problem`'s evaluation_step on every batch of a split, then its evaluation_end; metrics are `prefix/metric`."""

    problem: str
    prefix: str
    split: Any
    batch_size: int

    def probe(self, program: FunctionalProgram) -> dict[str, float]:
        """As `run` on the first batch, which may be all there is."""
        try:
            return self.run(program, first_only=True)
        except Exception as error:
            error.add_note(f"in the evaluation of {self.problem} on {self.prefix}")
            raise

    def run(self, program: FunctionalProgram, *, first_only: bool = False) -> dict[str, float]:
        """Means over the samples of the split, and metrics of the whole of it, as numbers. Raises ConfigError for what
        is no metric.

        first_only   of the first batch, and those of the whole only where that is all
        """
        problem = program.problems[self.problem]
        title = type(problem).__name__
        totals: dict[str, Tensor] = {}
        collected: list[Any] = []
        count = 0
        with program.evaluating():
            for batch in ordered_batches(self.split, self.batch_size, program.device):
                if first_only and count:
                    whole = {}
                    break
                size = batch_length(batch)
                count += size
                result = problem.evaluation_step(batch)
                outputs = result.get("outputs") if isinstance(result, Mapping) else None
                if outputs is not None:
                    collected.append(outputs)
                for key, value in metrics_of(result, f"{title}.evaluation_step").items():
                    part = _wide(value.to(program.device)) * size
                    totals[key] = totals[key] + part if key in totals else part
            else:
                ended = problem.evaluation_end(_joined(collected) if collected else None)
                whole = {} if ended is None else metrics_of(ended, f"{title}.evaluation_end")
        means = {key: total / count for key, total in totals.items()}
        metrics = {**means, **{key: _wide(value.to(program.device)) for key, value in whole.items()}}
        if not metrics:
            return {}
        numbers = torch.stack([value.reshape(()) for value in metrics.values()]).tolist()
        return {f"{self.prefix}/{key}": number for key, number in zip(metrics, numbers, strict=True)}


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.device.type == "mps" else value.double()


def _joined(parts: list[Any]) -> Any:
    """Nestings of tensors of one shape, concatenated tensor by tensor along the samples."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):
        return {key: _joined([part[key] for part in parts]) for key in first}
    return type(first)(_joined(list(group)) for group in zip(*parts, strict=True))
