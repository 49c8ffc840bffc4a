"""One moment of a program: what its estimators give there, what they should give, and what they leave behind."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mlorun.core.adjoint import total
from mlorun.core.engine import Engine
from mlorun.core.levels import Levels
from mlorun.core.world import cast
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Hypergradient
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.memory import PeakMemory

REPEATS = 3
SLOW = 1.0  # seconds of a call that is not timed again

# (lower, the problem that it adds to): the contribution
Edges = dict[tuple[str, str], Vector]
Estimates = Mapping[str, Hypergradient]
Carries = dict[tuple[str, str], Any]


@dataclass(frozen=True)
class Cost:
    """Of one sweep: the median seconds, and the peak of what its tensors held, in bytes."""

    seconds: float
    peak_bytes: int


class Point:
    """The program right before a step of `upper`, on the micro-batch that this step will take.

    Everything here leaves the program as it was: the estimators' carries are copies.
    """

    def __init__(self, engine: Engine, upper: str) -> None:
        self.engine = engine
        self.upper = upper
        engine.recorder.peek(upper)
        self.finest, self.precision = self._finest()
        self.carries: Carries = copy.deepcopy(engine.adjoint.carries)

    @property
    def nodes(self) -> tuple[str, ...]:
        """The lower problems that the hypergradient passes."""
        return self.engine.graph.between(self.upper)

    def _finest(self) -> tuple[Levels, str]:
        """The levels that references are taken on, and their precision: float64 wherever the losses allow it."""
        # a loss that makes tensors of its own need not mix with float64
        for constants in (False, True):
            levels = self.engine.levels.to(torch.float64, constants=constants)
            try:
                levels.outer_loss(self.upper, {})
                for node in self.nodes:
                    assert levels.level(node, ()).gradient
            except RuntimeError:
                continue
            return levels, "float64"
        return (
            self.engine.levels,
            "the parameters' own precision, so that rounding is not seen (constants in a loss do not mix with float64)",
        )

    def estimate(self, estimates: Estimates | None = None, carries: Carries | None = None) -> Edges:
        """What the program's own estimators (or others) give, in the parameters' own precision."""
        levels = self.engine.levels
        start = dict(self.carries if carries is None else carries)
        return self._sweep(levels, self._pulls(levels), estimates, start)

    def reference(self, estimates: Estimates, carries: Carries | None = None) -> Edges:
        """What these estimators give in the finest precision: parameters, batch, carries and all."""
        start = dict(carries or {})
        if self.finest is not self.engine.levels:
            start = {edge: _in_double(carry) for edge, carry in start.items()}
        return self._sweep(self.finest, self._pulls(self.finest), estimates, start)

    def upper_gradient(self, edges: Edges) -> Vector | None:
        """What the edges add to the upper problem's gradient."""
        return total(edges, self.upper)

    def cost(self, estimates: Estimates | None = None) -> Cost:
        """Of the indirect part, warm; of the first call where that is a slow one."""
        levels = self.engine.levels
        carries = copy.deepcopy(self.carries)
        pulls = self._pulls(levels)

        def seconds(carries: Carries) -> float:
            start = time.perf_counter()
            self._sweep(levels, pulls, estimates, carries)
            self._wait()
            return time.perf_counter() - start

        first = seconds(carries)
        warm = [seconds(copy.copy(carries)) for _ in range(REPEATS if first < SLOW else 0)]
        median = sorted(warm or [first])[len(warm) // 2]
        with PeakMemory() as memory:
            self._sweep(levels, pulls, estimates, copy.copy(carries))
        return Cost(median, memory.peak)

    def lower_gradient_seconds(self, node: str) -> float:
        """One gradient of the lower problem's loss, the unit of cost."""
        seconds = []
        for _ in range(10 * REPEATS):
            level = self.engine.levels.level(node, ())
            start = time.perf_counter()
            with self.engine.world.replay():
                assert level.gradient
            self._wait()
            seconds.append(time.perf_counter() - start)
        return sorted(seconds)[len(seconds) // 2]

    def disturbances(self, estimates: Estimates | None = None) -> list[str]:
        """What a call changes that it must not; empty is right. A second call must give the same bits."""
        before = self._fingerprint()
        first = self.estimate(estimates, copy.deepcopy(self.carries))
        after = self._fingerprint()
        second = self.estimate(estimates, copy.deepcopy(self.carries))
        found = [name for name in before if not equal(before[name], after[name])]
        if any(not equal(first[edge], second[edge]) for edge in first):
            found.append("two calls differ")
        return found

    def _pulls(self, levels: Levels) -> dict[str, Vector]:
        names = (self.upper, *self.nodes)
        loss = levels.outer_loss(self.upper, {})
        return self.engine.adjoint.pulls(self.upper, loss, {name: levels.theta(name) for name in names})[1]

    def _sweep(
        self, levels: Levels, pulls: Mapping[str, Vector], estimates: Estimates | None, carries: Carries
    ) -> Edges:
        adjoint = self.engine.adjoint
        return adjoint.sweep(self.upper, pulls, estimates=estimates, carries=carries, levels=levels)

    def _fingerprint(self) -> dict[str, list[Any]]:
        engine = self.engine
        problems = engine.problems.values()
        return {
            "parameters": [t.detach().clone() for p in problems for t in p.module.parameters()],
            "gradients": [None if t.grad is None else t.grad.clone() for p in problems for t in p.theta],
            "buffers": [t.clone() for p in problems for t in p.module.buffers()],
            "optimizer state": [copy.deepcopy(p.optimizer.state_dict()) for p in problems],
            "random numbers": [torch.get_rng_state()],
            "streams": [None if p.stream is None else dict(p.stream.state_dict()) for p in problems],
            "module modes": [m.training for p in problems for m in p.module.modules()],
        }

    def _wait(self) -> None:
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)


def equal(one: Any, other: Any) -> bool:
    """Bitwise, through any nesting."""
    if isinstance(one, Tensor):
        if not isinstance(other, Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return False
        return bool(((one == other) | ((one != one) & (other != other))).all())  # NaN is as it was
    if isinstance(one, Mapping):
        return isinstance(other, Mapping) and one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def _in_double(carry: Any) -> Any:
    """Plain data, tuples and dataclasses of it, with every floating-point tensor in float64."""
    if isinstance(carry, Tensor):
        return cast(torch.float64, carry)
    if isinstance(carry, tuple):
        return tuple(_in_double(part) for part in carry)
    if is_dataclass(carry) and not isinstance(carry, type):
        return replace(carry, **{f.name: _in_double(getattr(carry, f.name)) for f in fields(carry)})
    return carry


def relative_error(got: Vector, wanted: Vector) -> float:
    """norm(got - wanted) / norm(wanted); the norm of what was got where 0 was wanted."""
    length = float(vectors.norm(wanted))
    return float(vectors.norm(vectors.add(_double(got), _double(wanted), alpha=-1.0))) / (length or 1.0)


def cosine(got: Vector, wanted: Vector) -> float:
    """NaN where one of them is 0."""
    return float(vectors.cosine(_double(got), _double(wanted)))


def _double(x: Vector) -> Vector:
    return tuple(t.detach().double() for t in x)
