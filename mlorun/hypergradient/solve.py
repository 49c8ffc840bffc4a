"""v to about H^-1 v, H the Hessian of a level's loss: the first of an implicit estimator's two choices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.spectrum import DivergenceWatch, largest_eigenvalue, start_vector
from mlorun.hypergradient.vectors import Vector


class Solve(ABC):
    """v to x, about H^-1 v, and what the next call starts from. `curvature`: whether it takes Hessian products."""

    curvature: bool = True

    @abstractmethod
    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]: ...

    def require_size(self, name: str, theta: int) -> None:
        """Raise ConfigError where problem `name` has too many parameters for this solve."""
        return


class Identity(Solve):
    """x = v, or lr v with `scale: lr`: H taken for the identity (Luketina et al. 2016, arXiv:1511.06727).

    With `scale: lr` and the cross at the parameters before the last SGD step this is that step's exact
    hypergradient.
    """

    curvature = False

    def __init__(self, scale: float | Literal["lr"]) -> None:
        if isinstance(scale, str) and scale != "lr":
            raise ConfigError(f"scale is {scale!r}", where="scale", fix="a number, or lr")
        self.scale = scale

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        if self.scale == "lr":
            return vectors.scale_each(v, level.learning_rates), None
        return (v if self.scale == 1.0 else vectors.scale(v, float(self.scale))), None


class Neumann(Solve):
    """x = a sum over k = 0..K of (I - a H)^k v (Lorraine et al. 2020, arXiv:1911.02590, algorithm 3).

    terms        K; one Hessian product each
    step_size    a. A number, `lr` (the lower optimizer's), or `auto`: 1 / (largest absolute eigenvalue of H),
                 by power iteration: 20 more Hessian products at the first call and 2 at each later one

    In closed form H^-1 (I - (I - a H)^(K+1)) v. Converges for a < 2 / (largest eigenvalue of H) and H
    positive definite; a series that grows is named in the log, once.
    """

    def __init__(self, terms: int, step_size: float | Literal["lr", "auto"]) -> None:
        at_least("terms", terms, 0)
        if isinstance(step_size, str):
            if step_size not in ("lr", "auto"):
                raise ConfigError(f"step_size is {step_size!r}", where="step_size", fix="a number, lr or auto")
        else:
            positive("step_size", step_size)
        self.terms = terms
        self.step_size = step_size
        self._watch = DivergenceWatch(
            "Its Hessian is indefinite (choose minres or normal_cg)."
            if step_size == "auto"
            else "step_size is above 2 / (largest eigenvalue of the Hessian), or the Hessian is indefinite: "
            "choose a smaller one or step_size: auto, or minres."
        )

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        scaled, carry = self._scaling(level, v, carry)
        term = v
        total = v
        for _ in range(self.terms):
            term = vectors.add(term, scaled(level.hvp(term)), alpha=-1.0)
            total = vectors.add(total, term)
        self._watch.look(level, v, term)
        return scaled(total), carry

    def _scaling(self, level: Level, v: Vector, carry: Any) -> tuple[Callable[[Vector], Vector], Any]:
        """x to a x, and the vector that the next power iteration starts from."""
        if self.step_size == "lr":
            rates = level.learning_rates
            return lambda x: vectors.scale_each(x, rates), None
        if self.step_size == "auto":
            start, iterations = (start_vector(v), 20) if carry is None else (carry, 2)
            size, carry = largest_eigenvalue(level, start, iterations)
            # a Hessian of 0 has no scale of its own
            step = torch.where(size > 0, quotient(torch.ones_like(size), size, size > 0), 1.0)
            return lambda x: vectors.scale(x, step), carry
        number = float(self.step_size)
        return lambda x: vectors.scale(x, number), None


class ConjugateGradient(Solve):
    """(H + damping I) x = v by conjugate gradients (arXiv:1602.02355; iMAML, arXiv:1909.04630).

    iterations   K; one Hessian product each
    damping      added to the diagonal
    tolerance    stop at norm(residual) <= tolerance norm(v)
    warm_start   start from the previous solution rather than from 0

    Stops early, without waiting for the device, where the residual has vanished or the curvature p'Hp is not
    positive: from there on the step length is 0, so x stays the last good iterate.
    """

    def __init__(self, iterations: int, damping: float, tolerance: float, warm_start: bool) -> None:
        at_least("iterations", iterations, 1)
        at_least("damping", damping, 0)
        at_least("tolerance", tolerance, 0)
        self.iterations = iterations
        self.damping = damping
        self.tolerance = tolerance
        self.warm_start = warm_start

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        if self.warm_start and carry is not None:
            x: Vector = carry
            residual = vectors.add(v, self._product(level, x), alpha=-1.0)
        else:
            x = vectors.zeros_like(v)
            residual = v
        direction = residual
        square = vectors.dot(residual, residual)
        enough = (self.tolerance**2) * vectors.dot(v, v)
        going = square > enough
        taken = torch.zeros_like(square)
        for _ in range(self.iterations):
            taken = taken + going
            product = self._product(level, direction)
            curvature = vectors.dot(direction, product)
            going = going & (curvature > 0)
            length = quotient(square, curvature, going)
            x = vectors.add(x, direction, alpha=length)
            residual = vectors.add(residual, product, alpha=-length)
            fresh = vectors.dot(residual, residual)
            going = going & (fresh > enough)
            direction = vectors.add(residual, direction, alpha=quotient(fresh, square, going))
            square = fresh
            if square.device.type == "cpu" and not going:
                break  # free to ask on the CPU; elsewhere it would wait for the device
        if level.report is not None:
            level.report("iterations", taken)
        return x, x if self.warm_start else None

    def _product(self, level: Level, x: Vector) -> Vector:
        product = level.hvp(x)
        return vectors.add(product, x, alpha=self.damping) if self.damping else product


def quotient(above: Tensor, below: Tensor, valid: Tensor) -> Tensor:
    """above / below where valid, else 0."""
    one = torch.ones_like(below)
    return torch.where(valid, above / torch.where(valid, below, one), torch.zeros_like(above))


def at_least(name: str, value: float, bound: float) -> None:
    """Raise ConfigError for an option below its bound, or NaN."""
    if not value >= bound:
        raise ConfigError(f"{name} must be at least {bound:g}", where=name, seen=f"{value}")


def positive(name: str, value: float) -> None:
    """Raise ConfigError for an option that is not above 0, or NaN."""
    if not value > 0:
        raise ConfigError(f"{name} must be positive", where=name, seen=f"{value}")
