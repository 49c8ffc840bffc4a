"""The largest eigenvalue of a level's Hessian, and a watch on series that need it to be small."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector

log = logging.getLogger("mlorun.hypergradient")


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


def _unit(x: Vector) -> Vector:
    length = vectors.norm(x)
    return vectors.scale(x, 1.0 / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5))


class DivergenceWatch:
    """Names, once, in the log, a level whose series grows. Never waits for a device.

    On CUDA the answer travels beside the work, and a later call reads it; on MPS nothing is looked at.
    """

    def __init__(self, advice: str) -> None:
        self._advice = advice
        self._said = False
        self._coming: tuple[Tensor, torch.cuda.Event] | None = None

    def look(self, level: Level, first: Vector, last: Vector) -> None:
        """`first` and `last`: terms of the series. NaN counts as growth."""
        if self._said or last[0].device.type not in ("cpu", "cuda"):
            return
        if last[0].is_cuda and torch.cuda.is_current_stream_capturing():
            return
        grown = ~(vectors.norm(last) <= vectors.norm(first))
        seen = self._exchange(grown) if grown.is_cuda else grown
        if seen is not None and seen:
            self._said = True
            log.warning("%s: the series for the hypergradient grows from term to term. %s", level.name, self._advice)

    def _exchange(self, grown: Tensor) -> Tensor | None:
        """Send this answer to the host, and give the one sent before, if it has arrived."""
        before = self._coming
        if before is not None and not before[1].query():
            return None
        on_host = grown.to("cpu", non_blocking=True)  # into pinned memory: valid once the event has passed
        event = torch.cuda.Event()
        event.record()
        self._coming = on_host, event
        return None if before is None else before[0]
