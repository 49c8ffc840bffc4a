"""What is kept of one problem's steps: the last one, or its inner loop so far. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mlorun.core.world import Moment, cast
from mlorun.hypergradient.trajectory import Iterate, Keep, Step
from mlorun.hypergradient.vectors import Vector


@dataclass
class Record:
    """Of one problem.

    keep      what its estimator wants of inner loops; None is nothing
    now       the micro-batch at hand, for estimators below that evaluate this problem's loss again
    last      the micro-batches of its last optimizer step
    before    its parameters before that step, where its estimator asks for them
    loop      the updates of the inner loop that are kept
    dropped   how many earlier ones of the same loop were let go
    tangents  what an estimator that `follows` made of the loop
    """

    keep: Keep | None = None
    now: Moment | None = None
    last: tuple[Moment, ...] = ()
    before: Vector | None = None
    loop: list[Step] = field(default_factory=list)
    dropped: int = 0
    tangents: Any = None

    def restart(self) -> None:
        """Forget the inner loop."""
        self.loop, self.dropped, self.tangents = [], 0, None

    def trim(self, stride: int) -> None:
        """Let whole strides of updates go from the front, as long as `keep.steps` are left."""
        while self.keep is not None and self.keep.steps is not None and len(self.loop) - stride >= self.keep.steps:
            del self.loop[:stride]
            self.dropped += stride

    def to(self, dtype: torch.dtype) -> Record:
        """The same in another precision, in memory of its own; tangents are left out."""
        return Record(
            self.keep,
            None if self.now is None else self.now.to(dtype),
            tuple(moment.to(dtype) for moment in self.last),
            None if self.before is None else tuple(cast(dtype, t) for t in self.before),
            [_step_to(dtype, step) for step in self.loop],
            self.dropped,
        )


def _step_to(dtype: torch.dtype, step: Step) -> Step:
    at = step.iterate
    return replace(
        step,
        seen=tuple(moment.to(dtype) for moment in step.seen),
        lowers={name: tuple(cast(dtype, t) for t in theta) for name, theta in step.lowers.items()},
        iterate=at
        and Iterate(
            tuple(cast(dtype, t) for t in at.theta),
            tuple({key: cast(dtype, t) for key, t in state.items()} for state in at.state),
        ),
    )
