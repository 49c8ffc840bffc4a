"""Levels and trajectories, as estimators see them, from what was recorded of the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mlorun.core.decay import l2_decay, learning_rates, momenta
from mlorun.core.inner_loop import learned_options
from mlorun.core.record import Record
from mlorun.core.world import Moment, World, cast
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Hypergradient, Level, Outer, Report
from mlorun.hypergradient.trajectory import Step, Trajectory, Values
from mlorun.hypergradient.updates import precondition, update_of
from mlorun.hypergradient.vectors import Vector


class Levels:
    """Reads the records of every problem, in the parameters' own precision or, for comparisons, in another."""

    def __init__(self, world: World, records: Mapping[str, Record]) -> None:
        self._world = world
        self._records = records
        self._dtype: torch.dtype | None = None
        self._constants = False
        self._values: dict[str, Vector] = {}

    def to(self, dtype: torch.dtype, *, constants: bool = False) -> Levels:
        """The same in another precision, of the parameters as they are now.

        `constants`: new tensors that a loss makes without saying of which type are in that precision, too; so are the
        random numbers that it draws into such tensors, which then differ.
        """
        other = Levels(self._world, {name: record.to(dtype) for name, record in self._records.items()})
        other._dtype, other._constants = dtype, constants
        other._values = {
            name: tuple(cast(dtype, t.detach()).requires_grad_() for t in self._world.theta(name))
            for name in self._records
        }
        return other

    def theta(self, name: str) -> Vector:
        """The parameters that losses are differentiated in."""
        return self._values.get(name) or self._world.theta(name)

    def level(
        self, name: str, reads: tuple[str, ...], outer: Outer | None = None, report: Report | None = None
    ) -> Level:
        """The level of `name` at its last optimizer step, for the problems in `reads` to differentiate."""
        problem, record = self._world.problems[name], self._records[name]
        return Level(
            name,
            record.before or vectors.detach(self.theta(name)),
            {other: self.theta(other) for other in reads},
            lambda values: self._loss(name, record.last, values),
            decay=lambda: l2_decay(problem.optimizer, problem.theta),
            learning_rates=lambda: learning_rates(problem.optimizer, problem.theta),
            momenta=lambda: momenta(problem.optimizer, problem.theta),
            precondition=partial(precondition, problem.optimizer, problem.theta),
            outer=outer,
            trajectory=lambda: self.trajectory(name, reads),
            tangents=record.tangents,
            report=report,
        )

    def outer_loss(self, name: str, values: Values) -> Tensor:
        """The loss of `name`'s micro-batch at hand, (), with `values` put in."""
        now = self._records[name].now
        assert now is not None, f"the batch of {name} is not kept"
        return self._loss(name, (now,), values)

    def trajectory(self, name: str, reads: tuple[str, ...]) -> Trajectory:
        """The inner loop of `name` so far."""
        record = self._records[name]
        assert record.keep is not None, f"the inner loop of {name} is not kept"
        first = 0 if record.keep.steps is None else max(0, len(record.loop) - record.keep.steps)
        return self.updates(name, record.loop, reads, whole=record.dropped == 0, first=first)

    def updates(
        self, name: str, steps: Sequence[Step], reads: tuple[str, ...], *, whole: bool, first: int = 0
    ) -> Trajectory:
        """Any stretch of updates of `name`; arguments as of Trajectory."""
        problem = self._world.problems[name]
        return Trajectory(
            name,
            steps,
            lam={other: self.theta(other) for other in reads},
            whole=whole,
            first=first,
            loss=partial(self._loss, name),
            update=update_of(problem.optimizer),
            clip=problem.gradient_clip,
            start=lambda lam: self._substituted(lam, lambda: _vector(problem.initial_parameters())),
            learned=lambda lam: self._substituted(lam, lambda: learned_options(problem)),
        )

    def follow_again(self, name: str, estimate: Hypergradient, reads: tuple[str, ...]) -> None:
        """Let an estimator that follows go through the kept inner loop, as if it had been there."""
        record = self._records[name]
        tangents = None
        for t, step in enumerate(record.loop):
            tangents = estimate.follow(self.updates(name, [step], reads, whole=t == 0), tangents)
        record.tangents = tangents

    def _loss(self, name: str, moments: Sequence[Moment], values: Values) -> Tensor:
        with self._world.replay(), self._in_precision():
            return self._world.loss(name, moments, {**self._values, **values})

    def _substituted(self, values: Values, function: Callable[[], Any]) -> Any:
        with self._in_precision(), self._world.substituted({**self._values, **values}):
            return function()

    @contextmanager
    def _in_precision(self) -> Iterator[None]:
        if self._dtype is None:
            yield
            return
        constants = default_dtype(self._dtype) if self._constants else nullcontext()
        with self._world.parameters_as(self._dtype), constants:
            yield


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The type of new floating-point tensors inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _vector(tensors: Any) -> Vector | None:
    return None if tensors is None else tuple(tensors)
