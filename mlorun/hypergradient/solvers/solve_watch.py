"""A watch on solves and updates: what goes wrong with one is named once, without a wait for the device."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector

log = logging.getLogger("mlorun.hypergradient")


class SolveWatch:
    """Names, once, in the log, a level whose solve went wrong. Never waits for a device.

    what     went wrong
    advice   what to do
    bound    of what is looked at, above which it is wrong: a relative error, which is named in percent; None for flags

    On CUDA the answer travels beside the work, and a later call reads it; on MPS nothing is looked at.
    """

    def __init__(self, what: str, advice: str, *, bound: float | None = None) -> None:
        self._what = what
        self._advice = advice
        self._bound = bound
        self._said = False
        self._coming: tuple[Tensor, torch.cuda.Event] | None = None

    def look_at_growth(self, level: Level, first: Vector, last: Vector) -> None:
        """`first` and `last`: terms of a series, which went wrong if it grows. NaN counts as growth."""
        if not self._said:
            self.look(level, ~(vectors.norm(last) <= vectors.norm(first)))

    def look(self, level: Level, wrong: Tensor) -> None:
        """`wrong`: whether this call of the solve went wrong, or by how much, ()."""
        if self._said or wrong.device.type not in ("cpu", "cuda"):
            return
        if wrong.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        seen = self._exchange(wrong) if wrong.is_cuda else wrong
        if seen is not None and seen > (self._bound or 0):
            self._said = True
            size = "" if self._bound is None else f" ({100 * float(seen):.2g} %)"
            log.warning("%s: %s%s. %s", level.name, self._what, size, self._advice)

    def _exchange(self, wrong: Tensor) -> Tensor | None:
        """Send this answer to the host, and give the one sent before, if it has arrived."""
        before = self._coming
        if before is not None and not before[1].query():
            return None
        on_host = wrong.to("cpu", non_blocking=True)  # into pinned memory: valid once the event has passed
        event = torch.cuda.Event()
        event.record()
        self._coming = on_host, event
        return None if before is None else before[0]
