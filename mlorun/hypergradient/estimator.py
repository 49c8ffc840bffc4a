"""What a hypergradient estimator is: a function of one level, and a declaration of what it needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlorun.hypergradient.inner_loop import Checkpointing
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.trajectory import Trajectory
from mlorun.hypergradient.vectors import Vector

# the ways in which an upper problem acts on a lower one: by its loss, by the start of its inner loops, by its
# optimizer's options, and by random draws whose distribution the upper problem decides
Channel = Literal["loss", "start", "options", "draws"]
EVERY_CHANNEL: frozenset[Channel] = frozenset(get_args(Channel))
ALL_BUT_DRAWS: frozenset[Channel] = EVERY_CHANNEL - {"draws"}


# how second derivatives of a problem that steers others are taken
Nested = Literal["full", "gauss_newton", "own_loss"]


@dataclass(frozen=True)
class Needs:
    """What an estimator differentiates, and what must be recorded of the lower problem's steps for it.

    channels            the ways of acting that it differentiates; an edge that acts in other ways alone is refused
    linearize           at the lower parameters "after" the last optimizer step, or "before" it
    inner_loop          how the updates of the inner loop are recorded; None is not at all
    tangents            `propagate` is called at every update, as it happens
    every_loop          tangents are kept from one inner loop to the next
    upper_loss          it evaluates the upper problem's loss again, so the batch of that problem is kept
    nested              how it takes second derivatives of a problem that steers others: "full", of its total loss;
                        "gauss_newton", those with constant derivatives of the lower optima; "own_loss", those of its
                        own loss, with constant lower optima. None: refused on such a problem
    answers             what second derivatives of the problem above see of this one's optimum: its `solution`
                        ("solve"), or a constant. None: refused below such a problem
    reruns_inner_loop   it repeats the inner loop by the lower loss alone; refused for a problem with a hypergradient of
                        its own
    """

    channels: frozenset[Channel] = frozenset({"loss"})
    linearize: Literal["after", "before"] = "after"
    inner_loop: Checkpointing | None = None
    tangents: bool = False
    every_loop: bool = False
    upper_loss: bool = False
    nested: Nested | None = None
    answers: Literal["solve", "constant"] | None = None
    reruns_inner_loop: bool = False

    @property
    def plain_steps(self) -> bool:
        """Whether it differentiates updates: each must be the optimizer's step on the loss's gradient."""
        return self.inner_loop is not None or self.tangents


class Hypergradient(ABC):
    """How the problems above differentiate through one problem's optimum. Keeps no state: what a later call needs
    travels in the carry."""

    needs: Needs = Needs()

    @abstractmethod
    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], Any]:
        """v = dF/dtheta to ({name: -B H^-1 v for each of level.lam}, carry). The first carry is None."""

    def solution(self, level: Level, g: Vector) -> Vector:
        """About H^-1 g, without a carry, of an estimator that `answers` by a solve."""
        raise NotImplementedError

    def require_size(self, name: str, theta: int, lam: int) -> None:
        """Raise ConfigError where problem `name` has too many parameters, or too many are differentiated in."""
        return

    def propagate(self, update: Trajectory, tangents: Any) -> Any:
        """Before each update of a problem whose estimator needs tangents: that one update, and what the last call gave.

        At the first update of an inner loop, `tangents` is what `kept_tangents` made of the last loop's.
        """
        raise NotImplementedError

    def kept_tangents(self, tangents: Any) -> Any:
        """What the next inner loop begins with; None is nothing."""
        return None

    def in_use(self, carry: Any) -> str:
        """What an edge really uses, for the record; `carry` is what its last call gave."""
        return type(self).__name__

    def pack(self, carry: Any) -> Any:
        """A carry as numbers, texts, tensors, tuples and dicts, for a checkpoint."""
        return carry

    def unpack(self, packed: Any) -> Any:
        """The inverse of `pack`."""
        return packed

    def pack_tangents(self, tangents: Any) -> Any:
        """What `propagate` gave, as numbers, texts, tensors, tuples and dicts, for a checkpoint."""
        return tangents

    def unpack_tangents(self, packed: Any) -> Any:
        """The inverse of `pack_tangents`."""
        return packed
