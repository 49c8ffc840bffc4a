"""Exact solve: the dense Hessian, factored in float64. The oracle for all others."""

from __future__ import annotations

from typing import Any

import torch

from mlorun.errors import ConfigError, RunError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector

LARGEST_ROUNDING = 0.1  # of H x, in units of v
TINY = torch.finfo(torch.float64).tiny


class Exact(Solver):
    """(H + damping I) x = v with H built column by column: P Hessian products, P^2 numbers, on the CPU.

    By Cholesky, or LU where H is not positive definite.

    damping       added to the diagonal
    largest_size  refuse a level of more parameters than this
    """

    def __init__(self, damping: float, largest_size: int) -> None:
        at_least("damping", damping, 0)
        at_least("largest_size", largest_size, 1)
        self.damping = damping
        self.largest_size = largest_size

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        self.require_size(level.name, sum(t.numel() for t in v))
        matrix = hessian(level, v)
        matrix.diagonal().add_(self.damping)
        right = vectors.flat(v).cpu().double()[:, None]
        factor, info = torch.linalg.cholesky_ex(matrix)
        if info == 0:
            solution = torch.cholesky_solve(right, factor)
        else:
            # an indefinite Hessian has no Cholesky factor, but a solution all the same
            solution, info = torch.linalg.solve_ex(matrix, right)
        # how much longer than v rounding of H has made H x, at worst
        rounding = torch.finfo(v[0].dtype).eps * float(matrix.norm() * solution.norm() / right.norm().clamp_min(TINY))
        if info != 0 or rounding > LARGEST_ROUNDING:
            raise RunError(
                f"the Hessian of {level.name} is singular, or too near it for the precision",
                where=f"problems.{level.name}.hypergradient.solve.damping",
                seen=f"damping: {self.damping:g}",
                fix="raise damping, or give its optimizer weight decay",
            )
        return vectors.shaped(solution[:, 0].to(v[0].dtype).to(v[0].device), v), None

    def require_size(self, name: str, theta: int) -> None:
        if theta > self.largest_size:
            raise ConfigError(
                f"{name} has {theta} parameters, too many for a dense Hessian",
                where=f"problems.{name}.hypergradient.solve.largest_size",
                seen=f"largest_size: {self.largest_size}",
                fix=f"{name}.hypergradient=cg, or raise largest_size",
            )


def hessian(level: Level, like: Vector) -> torch.Tensor:
    """H, (P, P) in float64 on the CPU, made symmetric."""
    size = sum(t.numel() for t in like)
    matrix = torch.empty(size, size, dtype=torch.float64)
    for index in range(size):
        unit = torch.zeros(size, dtype=like[0].dtype, device=like[0].device)
        unit[index] = 1
        matrix[index] = vectors.flat(level.hvp(vectors.shaped(unit, like)))
    return (matrix + matrix.T) / 2
