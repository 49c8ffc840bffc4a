"""Random numbers of a loss in float64 are those of the same loss in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlorun.core.replay.own_draws import OwnDraws

Draw = Callable[[torch.dtype], Tensor]


def ones(dtype: torch.dtype) -> Tensor:
    return torch.ones(50, dtype=dtype)


@pytest.mark.parametrize(
    "draw",
    [
        lambda dtype: torch.rand(50, dtype=dtype),
        lambda dtype: torch.rand_like(ones(dtype)),
        lambda dtype: torch.randn(50, dtype=dtype),
        lambda dtype: torch.randn_like(ones(dtype)),
        lambda dtype: torch.normal(ones(dtype), 2.0),
        lambda dtype: torch.normal(mean=ones(dtype), std=ones(dtype)),
        lambda dtype: torch.normal(0.0, 1.0, (50,), dtype=dtype),
        lambda dtype: torch.bernoulli(0.3 * ones(dtype)),
        lambda dtype: (0.3 * ones(dtype)).bernoulli(),
        lambda dtype: torch.empty(50, dtype=dtype).bernoulli_(0.3),
        lambda dtype: torch.empty(50, dtype=dtype).exponential_(2.0),
        lambda dtype: F.dropout(ones(dtype), 0.3),
        lambda dtype: F.gumbel_softmax(ones(dtype)),
    ],
)
def test_what_is_drawn_in_another_precision_is_what_the_own_one_draws(draw: Draw) -> None:
    torch.manual_seed(0)
    own = draw(torch.float32)
    torch.manual_seed(0)
    with OwnDraws(torch.float32, torch.float64):
        wide = draw(torch.float64)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide, own.double(), rtol=1e-6, atol=1e-6)
