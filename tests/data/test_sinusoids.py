"""Sinusoid tasks."""

from __future__ import annotations

import math

import pytest
import torch

from mlorun.data.sinusoids import sinusoid_tasks
from mlorun.errors import DataError


def test_every_task_is_one_sinusoid_in_the_papers_ranges() -> None:
    splits = sinusoid_tasks(seed=0, train_tasks=200, valid_tasks=20, test_tasks=20, shots=12)
    for split in splits.values():
        x = torch.cat([split["support"][0], split["query"][0]], dim=1)
        y = torch.cat([split["support"][1], split["query"][1]], dim=1)
        # y = a sin x + b cos x, by least squares: exact, with sqrt(a2 + b2) the amplitude
        basis = torch.cat([x.sin(), x.cos()], dim=2).double()
        fit = torch.linalg.lstsq(basis, y.double()).solution
        assert torch.allclose(basis @ fit, y.double(), atol=1e-4)
        amplitude = fit.norm(dim=1)
        assert amplitude.min() >= 0.1 and amplitude.max() <= 5.0 + 1e-4
        phase = torch.atan2(-fit[:, 1], fit[:, 0])
        assert phase.min() > -1e-3 and phase.max() < math.pi + 1e-3
        assert x.abs().max() <= 5


def test_the_seed_decides_and_the_splits_differ() -> None:
    one, same, other = (sinusoid_tasks(seed=s, train_tasks=5, valid_tasks=5, test_tasks=5, shots=3) for s in (0, 0, 1))
    assert torch.equal(one["train"]["support"][0], same["train"]["support"][0])
    assert not torch.equal(one["train"]["support"][0], other["train"]["support"][0])
    assert not torch.equal(one["train"]["support"][0], one["test"]["support"][0])
    assert one["train"]["query"][1].shape == (5, 3, 1)


def test_no_shots_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="shots"):
        sinusoid_tasks(seed=0, train_tasks=5, valid_tasks=5, test_tasks=5, shots=0)
