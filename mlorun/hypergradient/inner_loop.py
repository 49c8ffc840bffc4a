"""What is recorded of an inner loop: its updates, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.vectors import Vector

# parameters by problem
Values = Mapping[str, Vector]
# options of the optimizer that upper problems decide, by name: (), or one number for each of its groups
LearnedOptions = Mapping[str, Tensor]
# one parameter group of an optimizer, its numbers possibly tensors with a graph
Options = Mapping[str, Any]
# an optimizer's state for one parameter, by torch's names
State = dict[str, Tensor]
# entries of that state that count steps: they are not differentiated
COUNTERS = frozenset({"step"})


@dataclass(frozen=True)
class Checkpointing:
    """How an inner loop is recorded.

    steps    the last so many updates; None is all of them
    memory   "iterates": parameters and optimizer state before every update. "sqrt": before every ceil(sqrt(T))-th,
             for T updates an inner loop. "constant": before the first. What lies between is computed again.
    """

    steps: int | None
    memory: Literal["iterates", "sqrt", "constant"]

    def stride(self, expected: int) -> int:
        """Updates from one recorded iterate to the next, for loops of about `expected` updates."""
        if self.memory == "iterates":
            return 1
        count = expected if self.steps is None else min(expected, self.steps)
        return count if self.memory == "constant" else math.isqrt(count - 1) + 1


@dataclass(frozen=True)
class Iterate:
    """Parameters, and the optimizer's state for each of them, between two updates."""

    theta: Vector
    state: tuple[State, ...]

    def detach(self) -> Iterate:
        """The same values outside of any graph."""
        return Iterate(vectors.detach(self.theta), tuple({k: t.detach() for k, t in s.items()} for s in self.state))

    def pack(self) -> dict[str, Any]:
        """As plain containers and tensors."""
        return {"theta": self.theta, "state": self.state}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> Iterate:
        """The inverse of `pack`."""
        return cls(tuple(packed["theta"]), tuple(dict(state) for state in packed["state"]))


@dataclass(frozen=True)
class RecordedUpdate:
    """One recorded update.

    snapshots      what the loss needs to be evaluated as the step saw it; opaque to estimators
    options        the optimizer's options for each parameter; None for one that it does not hold
    lower_optima   the values of the lower optima that the loss read
    iterate        where it started, where that was recorded
    """

    snapshots: Any
    options: tuple[Options | None, ...]
    lower_optima: Values
    iterate: Iterate | None


@dataclass(frozen=True)
class InnerLoop:
    """A stretch of recorded updates.

    whole   the first update is the first of the inner loop; else earlier ones were let go
    first   updates before this one serve only to compute the iterates again, and are not to be differentiated
    rough   the updates ran in lower precision than they are evaluated again in
    """

    updates: tuple[RecordedUpdate, ...]
    whole: bool
    first: int = 0
    rough: bool = False
