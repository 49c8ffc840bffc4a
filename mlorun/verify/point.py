"""One point of a program's run: what its estimators give there, what they should give, and what they leave behind."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mlorun.core.adjoint import Estimates
from mlorun.core.engine import Engine
from mlorun.core.replay.snapshot import cast
from mlorun.core.replay.views import Views
from mlorun.data.batches import map_tensors
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.sweep import Carries, Edges, sweep
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.memory import PeakMemory

REPEATS = 3
SLOW = 1.0  # seconds of a call that is not timed again


@dataclass(frozen=True)
class Cost:
    """Of one sweep: the median seconds, and the peak of what its tensors held, in bytes."""

    seconds: float
    peak_bytes: int


class VerificationPoint:
    """The program right before a step of `upper`, on the micro-batch that this step will take.

    views       what estimators see there
    finest      the same in the finest precision that the losses allow, which `precision` names
    carries     of the estimators, as they are

    Everything here leaves the program as it was.
    """

    def __init__(self, engine: Engine, upper: str) -> None:
        self.engine = engine
        self.upper = upper
        self.views = engine.views_before(upper)
        self.finest, self.precision = self._finest()
        self.carries: Carries = dict(engine.adjoint.carries[upper])

    @property
    def nodes(self) -> tuple[str, ...]:
        """The lower problems that the hypergradient passes."""
        return self.engine.graph.nodes_on_paths(self.upper)

    def _finest(self) -> tuple[Views, str]:
        """The views that references are taken on, and their precision: float64 wherever the losses allow it."""
        # a loss that makes tensors of its own need not mix with float64
        for constants in (False, True):
            views = self.views.to(torch.float64, constants=constants)
            try:
                views.upper_loss(self.upper)({})
                for node in self.nodes:
                    assert Level(views.view(node, ())).gradient
            except RuntimeError:
                continue
            return views, "float64"
        return (
            self.views,
            "the parameters' own precision, so that rounding is not seen (constants in a loss do not mix with float64)",
        )

    def estimate(self, estimates: Estimates | None = None, carries: Carries | None = None) -> Edges:
        """What the program's own estimators (or others) give, in the parameters' own precision."""
        start = self.carries if carries is None else carries
        if estimates is not None:
            start = {node: self._handed_over(node, estimates, carry) for node, carry in start.items()}
        return self._sweep(self.views, estimates, start)

    def reference(self, estimates: Estimates, carries: Carries | None = None) -> Edges:
        """What these estimators give in the finest precision: parameters, batch, carries and all."""
        dtype = None if self.finest is self.views else torch.float64
        start = {node: self._handed_over(node, estimates, carry, dtype) for node, carry in (carries or {}).items()}
        return self._sweep(self.finest, estimates, start)

    def cost(self, estimates: Estimates | None = None, carries: Carries | None = None) -> Cost:
        """Of the indirect part, warm; of the first call where that is a slow one."""
        engine, views = self.engine, self.views
        cotangents = self._cotangents(views)
        warm_carries = self.carries if carries is None else carries

        def once(carries: Carries) -> Carries:
            with engine.program.replay():
                nodes = engine.adjoint.nodes(self.upper, views, estimates)
                return sweep(nodes, cotangents, carries, views.upper_loss(self.upper)).carries

        def seconds(carries: Carries) -> tuple[float, Carries]:
            start = time.perf_counter()
            after = once(carries)
            self._wait()
            return time.perf_counter() - start, after

        first, warm_carries = seconds(warm_carries)
        warm = [seconds(warm_carries)[0] for _ in range(REPEATS if first < SLOW else 0)]
        median = sorted(warm or [first])[len(warm) // 2]
        with PeakMemory() as memory:
            once(warm_carries)
        return Cost(median, memory.peak)

    def lower_gradient_seconds(self, node: str) -> float:
        """One gradient of the lower problem's loss, the unit of cost."""
        seconds = []
        for _ in range(10 * REPEATS):
            level = Level(self.views.view(node, ()))
            start = time.perf_counter()
            with self.engine.program.replay():
                assert level.gradient
            self._wait()
            seconds.append(time.perf_counter() - start)
        return sorted(seconds)[len(seconds) // 2]

    def disturbances(self, estimates: Estimates | None = None) -> list[str]:
        """What a call changes that it must not; empty is right. A second call must give the same bits."""
        before = self._fingerprint()
        first = self.estimate(estimates)
        after = self._fingerprint()
        second = self.estimate(estimates)
        changed = [name for name in before if not equal(before[name], after[name])]
        if any(not equal(first[edge], second[edge]) for edge in first):
            changed.append("two calls differ")
        return changed

    def _cotangents(self, views: Views) -> dict[str, Vector]:
        return self.engine.adjoint.cotangents(self.upper, views.upper_loss(self.upper)({}), views)[1]

    def _sweep(self, views: Views, estimates: Estimates | None, carries: Carries) -> Edges:
        cotangents = self._cotangents(views)
        with self.engine.program.replay():
            nodes = self.engine.adjoint.nodes(self.upper, views, estimates)
            return sweep(nodes, cotangents, carries, views.upper_loss(self.upper)).edges

    def levels(self) -> dict[str, Level]:
        """Every lower problem on the way as references see it, in the finest precision."""
        nodes = self.engine.adjoint.nodes(self.upper, self.finest)
        return {node.problem.name: Level(node.problem) for node in nodes}

    def _handed_over(self, node: str, estimates: Estimates, carry: Any, dtype: torch.dtype | None = None) -> Any:
        """A carry of the program's own estimator for the one in its place; `dtype` is that of its tensors."""
        own = self.engine.adjoint.estimate(node)
        packed = own.pack(carry)
        if dtype is not None:
            packed = map_tensors(partial(cast, dtype), packed)
        return (estimates.get(node) or own).unpack(packed)

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


def relative_error(got: Vector, wanted: Vector) -> float:
    """norm(got - wanted) / norm(wanted); the norm of what was got where 0 was wanted."""
    length = float(vectors.norm(wanted))
    return float(vectors.norm(vectors.add(_double(got), _double(wanted), alpha=-1.0))) / (length or 1.0)


def cosine(got: Vector, wanted: Vector) -> float:
    """NaN where one of them is 0."""
    return float(vectors.cosine(_double(got), _double(wanted)))


def _double(x: Vector) -> Vector:
    return tuple(t.detach().double() for t in x)
