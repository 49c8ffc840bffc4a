"""Nystrom solve: H replaced by an approximation from a few of its columns (Hataya and Yamada 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least, positive
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


class Nystrom(Solver):
    """x = v / rho - C (H_SS + C'C / rho)^-1 C'v / rho^2, with C = H[:, S] (arXiv:2302.09726).

    columns   k = size of S, drawn anew at every call; one Hessian product and P numbers each
    rho       damping; 0.01 to 0.1. k = P and rho -> 0 is exact
    seed      of the draws, which have a generator of their own: the run's random numbers do not move

    The carry counts calls, so that a resumed run draws what an uninterrupted one would. Waits for the device,
    once.
    """

    def __init__(self, columns: int, rho: float, seed: int) -> None:
        at_least("columns", columns, 1)
        positive("rho", rho)
        self.columns = columns
        self.rho = rho
        self.seed = seed

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        calls = int(carry or 0)
        flat = vectors.flat(v)
        size = flat.numel()
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + calls) % 2**63)
        chosen = torch.randperm(size, generator=generator)[: self.columns]
        columns = torch.stack([_column(level, v, index) for index in chosen.tolist()], dim=1)  # (P, k)
        # in float64, but on MPS, which has none: what is left of v / rho after the difference is small
        wide = columns if flat.device.type == "mps" else columns.double()
        right = flat.to(wide.dtype)
        small = wide[chosen.to(wide.device)]
        inner = (small + small.T) / 2 + wide.T @ wide / self.rho
        # least squares: the k by k system is singular where columns are dependent
        weights = torch.linalg.lstsq(inner.cpu(), (wide.T @ right).cpu()[:, None], driver="gelsd").solution[:, 0]
        x = right / self.rho - wide @ weights.to(wide.device) / self.rho**2
        return vectors.shaped(x.to(flat.dtype), v), calls + 1


def _column(level: Level, like: Vector, index: int) -> Tensor:
    """H[:, index], (P,)."""
    unit = torch.zeros(sum(t.numel() for t in like), dtype=like[0].dtype, device=like[0].device)
    unit[index] = 1
    return vectors.flat(level.hvp(vectors.shaped(unit, like)))
