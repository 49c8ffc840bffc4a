"""Estimators are tested in float64, from the same random numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from mlorun.core.replay.views import default_dtype


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    torch.manual_seed(0)
    with default_dtype(torch.float64):
        yield
