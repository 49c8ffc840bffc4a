"""Sinusoid regression tasks, drawn on the spot (Finn et al. 2017, arXiv:1703.03400, section 5.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.run.seeds import derive_seed

Pairs = tuple[Tensor, Tensor]


def sinusoid_tasks(
    *, seed: int, train_tasks: int, valid_tasks: int, test_tasks: int, shots: int
) -> dict[str, dict[str, Pairs]]:
    """Splits `train`, `valid` and `test` of tasks y = A sin(x - phase), A in [0.1, 5], phase in [0, pi], x in [-5, 5].

    Each split is {"support": (x, y), "query": (x, y)}, of shape (tasks, shots, 1).
    """
    counts = {"train": train_tasks, "valid": valid_tasks, "test": test_tasks}
    for name, value in counts.items():
        require_positive(f"data.{name}_tasks", value)
    require_positive("data.shots", shots)
    return {
        split: _tasks(torch.Generator().manual_seed(derive_seed(seed, "sinusoids", split)), count, shots)
        for split, count in counts.items()
    }


def _tasks(draw: torch.Generator, count: int, shots: int) -> dict[str, Pairs]:
    amplitude = 0.1 + 4.9 * torch.rand(count, 1, 1, generator=draw)
    phase = math.pi * torch.rand(count, 1, 1, generator=draw)

    def points() -> Pairs:
        x = 10 * torch.rand(count, shots, 1, generator=draw) - 5
        return x, amplitude * torch.sin(x - phase)

    return {"support": points(), "query": points()}
