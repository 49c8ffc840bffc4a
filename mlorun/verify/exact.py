"""The solve behind the implicit function theorem's hypergradient, and how far from an optimum its point is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.exact import hessian
from mlorun.hypergradient.solvers.indefinite import Minres
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector

LARGEST_DENSE = 1500  # parameters; above this MINRES stands in for the dense solve
MOST_ITERATIONS = 300
UNREACHED = 1e-3
CUTOFF = 1e-10  # of the largest eigenvalue, below which one counts as 0


@dataclass(frozen=True)
class Optimality:
    """How far a lower problem is from its optimum, weight decay included.

    gradient    the norm of its gradient
    step        norm(H^-1 gradient) / norm(theta), Newton's step
    decrement   sqrt(gradient' H^-1 gradient), Newton's decrement; NaN where that is below 0
    lowest      the smallest eigenvalue of H over the largest in magnitude; NaN where it is not known
    """

    gradient: float
    step: float
    decrement: float
    lowest: float


class ExactOrFinest(Solver):
    """The least-squares x of least norm for H x = v: from the dense Hessian's eigenvalues up to `largest_dense`
    parameters, else by MINRES. Remembers the largest residual it left, and how far from its optimum the level is.

    The eigenvalues of a level are computed once: below a problem that steers others there are many solves.
    """

    def __init__(self, largest_dense: int = LARGEST_DENSE, iterations: int = MOST_ITERATIONS) -> None:
        self._minres = Minres(iterations, 0.0, 1e-12)
        self.largest_dense = largest_dense
        self.how = ""
        self.residual = math.nan
        self.optimality: Optimality | None = None
        self._spectra: WeakKeyDictionary[Level, tuple[Tensor, Tensor]] = WeakKeyDictionary()

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        solve: Callable[[Vector], Vector]
        if sum(t.numel() for t in v) <= self.largest_dense:
            if level not in self._spectra:
                self._spectra[level] = _spectrum(level, v)
            values, basis = self._spectra[level]
            self.how = f"a dense Hessian of rank {int(_kept(values).sum())} of {len(values)}"
            solve = partial(_solved, (values, basis))
            lowest = float(values.min() / values.abs().max()) if values.abs().max() > 0 else math.nan
        else:
            self.how = f"{self._minres.iterations} steps of MINRES"
            solve = lambda right: self._minres(level, right, None)[0]  # noqa: E731
            lowest = math.nan
        x = solve(v)
        left = float(vectors.norm(vectors.add(level.hvp(x), v, alpha=-1.0)) / vectors.norm(v))
        self.residual = left if math.isnan(self.residual) else max(self.residual, left)
        if self.optimality is None:
            self.optimality = _optimality(level, solve, lowest)
        return x, None

    @property
    def reached(self) -> bool:
        """Whether x solves the system, rather than coming as near as there is time or range for."""
        return not self.residual > UNREACHED

    @property
    def summary(self) -> str:
        """What it was."""
        return f"{self.how}, residual {self.residual:.0e}"


def _optimality(level: Level, solve: Callable[[Vector], Vector], lowest: float) -> Optimality:
    gradient = level.with_decay(level.gradient, vectors.detach(level.theta))
    newton = solve(gradient)
    square = float(vectors.dot(gradient, newton))
    return Optimality(
        float(vectors.norm(gradient)),
        float(vectors.norm(newton)) / (float(vectors.norm(level.theta)) or 1.0),
        math.sqrt(square) if square >= 0 else math.nan,
        lowest,
    )


def _spectrum(level: Level, like: Vector) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the Hessian."""
    values, basis = torch.linalg.eigh(hessian(level, like))
    return values, basis


def _kept(values: Tensor) -> Tensor:
    return values.abs() > CUTOFF * values.abs().max()


def _solved(spectrum: tuple[Tensor, Tensor], v: Vector) -> Vector:
    """The least-squares x of least norm."""
    values, basis = spectrum
    kept = _kept(values)
    along = (basis.T @ vectors.flat(v).cpu().double())[kept] / values[kept]
    return vectors.shaped((basis[:, kept] @ along).to(v[0]), v)
