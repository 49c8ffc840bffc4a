"""Synthetic linear data whose true weights are sparse; in double precision, which small exact programs need."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.errors import DataError
from mlorun.run.seeds import derive_seed

Pairs = tuple[Tensor, Tensor]


def sparse_linear(
    *, seed: int, features: int, useful: int, noise: float, labels: str, sizes: Mapping[str, int]
) -> dict[str, Pairs]:
    """Splits of these sizes: inputs x ~ N(0, I) (N, features) and targets (N,), float64.

    The first `useful` true weights are drawn from N(0, 1), the others are 0. y = x'w + noise N(0, 1).

    labels   number: the target is y; sign: it is 1 where y > 0, else 0
    """
    for name, value in {"features": features, "useful": useful, **sizes}.items():
        require_positive(f"data.{name}", value)
    if useful > features or labels not in ("number", "sign"):
        raise DataError(
            "useful is at most features, and labels are number or sign",
            where="data",
            seen=f"useful={useful}, features={features}, labels={labels}",
        )
    draw = torch.Generator().manual_seed(derive_seed(seed, "sparse_linear"))
    truth = torch.zeros(features, dtype=torch.float64)
    truth[:useful] = torch.randn(useful, generator=draw, dtype=torch.float64)

    def sample(size: int) -> Pairs:
        x = torch.randn(size, features, generator=draw, dtype=torch.float64)
        y = x @ truth + noise * torch.randn(size, generator=draw, dtype=torch.float64)
        return x, (y > 0).double() if labels == "sign" else y

    return {name: sample(size) for name, size in sizes.items()}
