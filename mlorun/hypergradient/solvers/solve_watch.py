"""A watch on solves: what goes wrong with one is named once, without a wait for the device."""

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

    On CUDA the answer travels beside the work, and a later call reads it; on MPS nothing is looked at.
    """

    def __init__(self, what: str, advice: str) -> None:
        self._what = what
        self._advice = advice
        self._said = False
        self._coming: tuple[Tensor, torch.cuda.Event] | None = None

    def look_at_growth(self, level: Level, first: Vector, last: Vector) -> None:
        """`first` and `last`: terms of a series, which went wrong if it grows. NaN counts as growth."""
        if not self._said:
            self.look(level, ~(vectors.norm(last) <= vectors.norm(first)))

    def look(self, level: Level, wrong: Tensor) -> None:
        """`wrong`: whether this call of the solve went wrong, ()."""
        if self._said or wrong.device.type not in ("cpu", "cuda"):
            return
        if wrong.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        seen = self._exchange(wrong) if wrong.is_cuda else wrong
        if seen is not None and seen:
            self._said = True
            log.warning("%s: %s. %s", level.name, self._what, self._advice)

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
