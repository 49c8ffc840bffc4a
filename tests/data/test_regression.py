"""Synthetic linear data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlorun.data.regression import sparse_linear
from mlorun.errors import DataError


def data(**changes: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    given = {"seed": 0, "features": 6, "useful": 2, "noise": 0.0, "labels": "number", "sizes": {"train": 50}}
    return sparse_linear(**{**given, **changes})


def test_without_noise_only_the_useful_features_explain_the_targets() -> None:
    x, y = data()["train"]
    weights = torch.linalg.lstsq(x, y).solution
    assert weights[:2].abs().min() > 0.01 and weights[2:].abs().max() < 1e-10


def test_labels_by_sign_are_where_the_target_is_positive() -> None:
    assert torch.equal(data(labels="sign")["train"][1], (data()["train"][1] > 0).double())


@pytest.mark.parametrize("change", [{"useful": 7}, {"labels": "words"}, {"sizes": {"train": 0}}])
def test_data_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(DataError):
        data(**change)
