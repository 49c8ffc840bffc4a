"""The largest eigenvalue of a level's Hessian, and step sizes made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import positive
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


def start_vector(like: Vector) -> Vector:
    """A fixed unit vector with a part along everything; the run's random numbers do not move."""
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(sum(t.numel() for t in like), generator=generator, dtype=torch.float32)
    return _unit(vectors.shaped(row.to(like[0].device, like[0].dtype), like))


def largest_eigenvalue(level: Level, start: Vector, iterations: int) -> tuple[Tensor, Vector]:
    """The largest absolute eigenvalue of H, (), from below, by power iteration; and the last unit vector.

    One Hessian product an iteration.
    """
    u = start
    size = torch.zeros_like(vectors.norm(u))
    for _ in range(iterations):
        image = level.hvp(u)
        size = vectors.norm(image)
        u = _unit(image)
    return size, u


StepSize = float | Literal["lr", "auto"]


def check_step_size(name: str, value: StepSize) -> None:
    """Raise ConfigError for what is no step size."""
    if not isinstance(value, str):
        positive(name, value)
    elif value not in ("lr", "auto"):
        raise ConfigError(f"{name} is {value!r}", where=name, fix="a number, lr or auto")


def scaling(
    step_size: StepSize, level: Level, start: Vector | None, like: Vector
) -> tuple[Callable[[Vector], Vector], Vector | None]:
    """x to (step size) x, and the vector that the next power iteration starts from.

    step_size   a number; `lr`, the lower optimizer's; `auto`, 1 / (largest absolute eigenvalue of H) by power
                iteration: 20 Hessian products at the first call, where `start` is None, and 2 at each later one
    """
    if step_size == "lr":
        rates = level.learning_rates
        return lambda x: vectors.scale_each(x, rates), None
    if step_size == "auto":
        first, iterations = (start_vector(like), 20) if start is None else (start, 2)
        size, last = largest_eigenvalue(level, first, iterations)
        # a Hessian of 0 has no scale of its own
        step = torch.where(size > 0, vectors.quotient(torch.ones_like(size), size, size > 0), 1.0)
        return lambda x: vectors.scale(x, step), last
    number = float(step_size)
    return lambda x: vectors.scale(x, number), None


def _unit(x: Vector) -> Vector:
    length = vectors.norm(x)
    return vectors.scale(x, 1.0 / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5))
