"""Recorded problems as estimators see them, from the histories of their steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mlorun.core.program.update import UpdateRule
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.core.replay.history import History
from mlorun.core.replay.own_draws import OwnDraws
from mlorun.core.replay.snapshot import Snapshot, cast
from mlorun.hypergradient import vectors
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.inner_loop import InnerLoop, LearnedOptions, RecordedUpdate, Values
from mlorun.hypergradient.trajectory import Trajectory
from mlorun.hypergradient.vectors import Vector


class Views:
    """Reads the histories of every problem, in the parameters' own precision or, for references, in another."""

    def __init__(
        self,
        program: FunctionalProgram,
        histories: Mapping[str, History],
        *,
        dtype: torch.dtype | None = None,
        constants: bool = False,
        values: Values | None = None,
    ) -> None:
        self.program = program
        self._histories = histories
        self._dtype = dtype
        self._constants = constants
        self._values = values or {}

    def to(self, dtype: torch.dtype, *, constants: bool = False) -> Views:
        """The same in another precision, of the parameters as they are now.

        `constants`: new tensors that a loss makes without saying of which type are in that precision, too. The random
        numbers are those that it draws in its own.
        """
        return self._as(dtype, self._histories, constants)

    def last_step(self, name: str, dtype: torch.dtype, *, constants: bool) -> Views:
        """As `to`, with the history of the last step of `name` alone."""
        history = self._histories[name]
        return self._as(
            dtype, {name: History(last=history.last, before=history.before, rates=history.rates)}, constants
        )

    def _as(self, dtype: torch.dtype, histories: Mapping[str, History], constants: bool) -> Views:
        program = self.program
        return Views(
            program,
            {
                name: history.to(dtype, lambda snapshot, name=name: program.batch(name, snapshot))  # type: ignore[misc]
                for name, history in histories.items()
            },
            dtype=dtype,
            constants=constants,
            values={
                name: tuple(cast(dtype, t.detach()).requires_grad_() for t in self.theta(name))
                for name in program.problems
            },
        )

    def on_batch(self, name: str, snapshot: Snapshot) -> Views:
        """The same where the micro-batch at hand of `name` is this one."""
        histories = {**self._histories, name: replace(self._histories[name], current=snapshot)}
        return Views(self.program, histories, dtype=self._dtype, constants=self._constants, values=self._values)

    def theta(self, name: str) -> Vector:
        """The parameters that losses are differentiated in."""
        return self._values.get(name) or self.program.theta(name)

    def history(self, name: str) -> History:
        """Of one problem."""
        return self._histories[name]

    def view(
        self,
        name: str,
        reads: tuple[str, ...],
        *,
        inner_loop: InnerLoop | None = None,
        estimate: Hypergradient | None = None,
    ) -> ProblemView:
        """`name` at its last optimizer step, for the problems in `reads` to differentiate.

        inner_loop   in place of the recorded one
        estimate     propagates tangents through the recorded inner loop, in place of those that were propagated as it
                     happened
        """
        lam = {other: self.theta(other) for other in reads}
        view = ProblemView(
            name, lam, self, inner_loop or self._histories[name].inner_loop, self._histories[name].tangents
        )
        return view if estimate is None else replace(view, tangents=self._propagated(view, estimate))

    @staticmethod
    def _propagated(view: ProblemView, estimate: Hypergradient) -> Any:
        tangents = None
        for t, update in enumerate(view.inner_loop.updates):
            one = replace(view, inner_loop=InnerLoop((update,), whole=t == 0))
            tangents = estimate.propagate(one.trajectory(), tangents)
        return tangents

    def upper_loss(self, name: str) -> Callable[[Values], Tensor]:
        """The loss of `name` on its micro-batch at hand, (), as a function of parameters put in."""

        def loss(values: Values) -> Tensor:
            current = self._histories[name].current
            assert current is not None, f"the batch of {name} is not kept"
            return self.loss(name, (current,), values)

        return loss

    def loss(self, name: str, snapshots: tuple[Snapshot, ...], values: Values) -> Tensor:
        """The mean loss of `name` over the snapshots, (), with parameters put in; leaves the program as it was."""
        with self.program.replay(), self._in_precision():
            return self.program.loss(name, snapshots, {**self._values, **values})

    def with_values(self, values: Values, function: Callable[[], Any]) -> Any:
        """What `function` gives while these parameters are put in."""
        with self._in_precision(), self.program.substituted({**self._values, **values}):
            return function()

    @contextmanager
    def _in_precision(self) -> Iterator[None]:
        if self._dtype is None:
            yield
            return
        constants = default_dtype(self._dtype) if self._constants else nullcontext()
        own = next(t.dtype for name in self.program.problems for t in self.program.theta(name))
        draws = nullcontext() if own == self._dtype else OwnDraws(own, self._dtype)
        with self.program.parameters_as(self._dtype), constants, draws:
            yield


@dataclass(frozen=True)
class ProblemView:
    """One problem at its last optimizer step: the core's side of hypergradient.recorded.RecordedProblem."""

    name: str
    lam: Values
    views: Views
    inner_loop: InnerLoop
    tangents: Any

    @property
    def update(self) -> UpdateRule:
        return self.views.program.problems[self.name].update

    @property
    def point(self) -> Vector:
        return self.views.history(self.name).before or vectors.detach(self.views.theta(self.name))

    @property
    def learning_rates(self) -> tuple[Tensor, ...]:
        return self.views.history(self.name).rates or self.update.learning_rates

    def loss(self, values: Values) -> Tensor:
        return self.views.loss(self.name, self.views.history(self.name).last, values)

    def loss_of(self, update: RecordedUpdate, values: Values) -> Tensor:
        return self.views.loss(self.name, update.snapshots, values)

    def start(self, lam: Values) -> Vector | None:
        problem = self.views.program.problems[self.name]
        start: Vector | None = self.views.with_values(lam, problem.checked_start)
        return start

    def learned_options(self, lam: Values) -> LearnedOptions:
        problem = self.views.program.problems[self.name]
        options: LearnedOptions = self.views.with_values(lam, problem.learned_options)
        return options

    def in_double(self) -> ProblemView | None:
        # a loss that makes tensors of its own need not mix with float64; some devices have no float64 at all
        for constants in (False, True):
            try:
                views = self.views.last_step(self.name, torch.float64, constants=constants)
                view = replace(
                    self,
                    lam={name: views.theta(name) for name in self.lam},
                    views=views,
                    inner_loop=InnerLoop((), whole=False),
                    tangents=None,
                )
                view.loss({})
            except (RuntimeError, TypeError):
                continue
            return view
        return None

    def trajectory(self) -> Trajectory:
        """The inner loop as a differentiable map."""
        return Trajectory(self)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """The type of new floating-point tensors inside."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
