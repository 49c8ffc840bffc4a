"""What is kept of one problem's steps: the last one, and its inner loop so far. Data only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mlorun.core.replay.snapshot import Snapshot, cast
from mlorun.hypergradient.inner_loop import Checkpointing, InnerLoop, Iterate, RecordedUpdate
from mlorun.hypergradient.vectors import Vector


@dataclass
class History:
    """Of one problem.

    checkpointing   how its inner loops are recorded; None is not at all
    current         the micro-batch at hand, for estimators below that evaluate this problem's loss again
    window          the micro-batches of the optimizer step under way
    last            the micro-batches of the last optimizer step
    before          the parameters before that step, where the estimator linearizes there
    rates           the learning rates of that step, () for each parameter, where the estimator linearizes before it
    updates         the updates of the inner loop that are kept
    dropped         how many earlier ones of the same loop were let go
    rough           its steps run in lower precision than replays do
    tangents        what an estimator that propagates them made of the loop
    starts          no update of the loop has been propagated yet
    """

    checkpointing: Checkpointing | None = None
    current: Snapshot | None = None
    window: list[Snapshot] = field(default_factory=list)
    last: tuple[Snapshot, ...] = ()
    before: Vector | None = None
    rates: Vector | None = None
    updates: list[RecordedUpdate] = field(default_factory=list)
    dropped: int = 0
    rough: bool = False
    tangents: Any = None
    starts: bool = True

    @property
    def inner_loop(self) -> InnerLoop:
        """The kept updates, and which of them are to be differentiated."""
        steps = None if self.checkpointing is None else self.checkpointing.steps
        first = 0 if steps is None else max(0, len(self.updates) - steps)
        return InnerLoop(tuple(self.updates), whole=self.dropped == 0, first=first, rough=self.rough)

    def restart(self, tangents: Any = None) -> None:
        """Forget the inner loop; the next one begins with these tangents."""
        self.updates, self.dropped, self.tangents, self.starts = [], 0, tangents, True

    def trim(self, stride: int) -> None:
        """Let whole strides of updates go from the front, as long as `checkpointing.steps` are left."""
        if self.checkpointing is None or self.checkpointing.steps is None:
            return
        while len(self.updates) - stride >= self.checkpointing.steps:
            del self.updates[:stride]
            self.dropped += stride

    def to(self, dtype: torch.dtype, batch: Callable[[Snapshot], Any]) -> History:
        """The same in another precision, in memory of its own; `batch` gives that of a snapshot. Tangents are left
        out."""

        def snapshots(some: tuple[Snapshot, ...]) -> tuple[Snapshot, ...]:
            return tuple(one.to(dtype, batch(one)) for one in some)

        return History(
            self.checkpointing,
            None if self.current is None else snapshots((self.current,))[0],
            [],
            snapshots(self.last),
            None if self.before is None else _cast(dtype, self.before),
            self.rates,
            [
                replace(
                    update,
                    snapshots=snapshots(update.snapshots),
                    lower_optima={name: _cast(dtype, theta) for name, theta in update.lower_optima.items()},
                    iterate=update.iterate and _iterate_to(dtype, update.iterate),
                )
                for update in self.updates
            ],
            self.dropped,
            self.rough,
        )

    def pack(self) -> dict[str, Any]:
        """As plain containers, numbers and tensors.

        Without the tangents, which are their estimator's to pack, and the micro-batch at hand, which every step sets
        before it is read.
        """
        return {
            "window": [one.pack() for one in self.window],
            "last": [one.pack() for one in self.last],
            "before": self.before,
            "rates": self.rates,
            "updates": [_pack_update(update) for update in self.updates],
            "dropped": self.dropped,
        }

    def unpack(self, packed: Mapping[str, Any]) -> None:
        """Take over what `pack` gave."""
        self.window = [Snapshot.unpack(one) for one in packed["window"]]
        self.last = tuple(Snapshot.unpack(one) for one in packed["last"])
        self.before = None if packed["before"] is None else tuple(packed["before"])
        self.rates = None if packed["rates"] is None else tuple(packed["rates"])
        self.updates = [_unpack_update(update) for update in packed["updates"]]
        self.dropped = packed["dropped"]


def _pack_update(update: RecordedUpdate) -> dict[str, Any]:
    return {
        "snapshots": [one.pack() for one in update.snapshots],
        "options": [None if options is None else dict(options) for options in update.options],
        "lower_optima": dict(update.lower_optima),
        "iterate": None if update.iterate is None else update.iterate.pack(),
    }


def _unpack_update(packed: Mapping[str, Any]) -> RecordedUpdate:
    return RecordedUpdate(
        tuple(Snapshot.unpack(one) for one in packed["snapshots"]),
        tuple(packed["options"]),
        {name: tuple(theta) for name, theta in packed["lower_optima"].items()},
        None if packed["iterate"] is None else Iterate.unpack(packed["iterate"]),
    )


def _iterate_to(dtype: torch.dtype, iterate: Iterate) -> Iterate:
    state = tuple({key: cast(dtype, t) for key, t in entry.items()} for entry in iterate.state)
    return Iterate(_cast(dtype, iterate.theta), state)


def _cast(dtype: torch.dtype, vector: Vector) -> Vector:
    return tuple(cast(dtype, t) for t in vector)
