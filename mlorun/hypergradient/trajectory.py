"""An inner loop as a differentiable map: the updates that took one problem from its start to where it is."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.inner_loop import Iterate, LearnedOptions, Values
from mlorun.hypergradient.recorded import RecordedProblem
from mlorun.hypergradient.vectors import Vector


class Trajectory:
    """theta_0, theta_1 = Phi_0(theta_0, lam), ..., theta_T: `len` is T.

    lam      as Level.lam: live parameters of the uppers, and of the lower optima, that the losses read
    updates  as they were recorded
    whole    theta_0 is where the inner loop started; else earlier updates were let go
    first    updates before this one serve only to compute the iterates again, and are not to be differentiated
    rough    the updates ran in lower precision than they are evaluated again in

    Each evaluation replays what its step saw, and leaves the program as it was.
    """

    def __init__(self, problem: RecordedProblem) -> None:
        self._problem = problem
        self.name = problem.name
        self.lam = dict(problem.lam)
        inner_loop = problem.inner_loop
        self.updates = inner_loop.updates
        self.whole = inner_loop.whole
        self.first = inner_loop.first
        self.rough = inner_loop.rough

    @property
    def end(self) -> Vector:
        """theta_T, where the problem is; detached."""
        return self._problem.point

    def __len__(self) -> int:
        return len(self.updates)

    def lam_at(self, t: int) -> dict[str, Vector]:
        """The values of `lam` that update t saw, detached: lower optima as they were then, uppers as they are."""
        then = self.updates[t].lower_optima
        return {name: vectors.detach(then.get(name, vector)) for name, vector in self.lam.items()}

    def start(self, lam: Values) -> Vector | None:
        """theta_0 as a function of lam, where upper problems decide it; None where it is what came before."""
        return self._problem.start(lam) if self.whole else None

    def learned_options(self, lam: Values) -> dict[str, Tensor]:
        """The optimizer's options that upper problems decide, as functions of lam, by name: ()
        each, or one number for each parameter group.

        Raises ConfigError for an option that the optimizer's registered step does not know.
        """
        return dict(self._problem.learned_options(lam))

    def loss(self, t: int, theta: Vector, lam: Values) -> Tensor:
        """The loss that update t descended, at other values, ()."""
        update = self.updates[t]
        return self._problem.loss_of(update, {**update.lower_optima, **lam, self.name: theta})

    def gradient(self, t: int, theta: Vector, lam: Values, *, create_graph: bool) -> tuple[Tensor | None, ...]:
        """d loss / d theta of update t, None for a parameter that it does not read. theta must require a gradient."""
        return derivatives.partial_gradients(self.loss(t, theta, lam), theta, create_graph=create_graph)

    def apply(
        self, t: int, iterate: Iterate, gradient: Sequence[Tensor | None], learned: LearnedOptions | None = None
    ) -> Iterate:
        """Update t from its gradient: clipping and the optimizer's step, differentiable in every argument."""
        return self._problem.update.apply(self.updates[t].options, iterate, gradient, learned or {})

    def phi(self, t: int, iterate: Iterate, lam: Values, learned: LearnedOptions | None = None) -> Iterate:
        """Update t, without a graph."""
        leaves = vectors.leaves(iterate.theta)
        gradient = self.gradient(t, leaves, lam, create_graph=False)
        with torch.no_grad():
            return self.apply(t, Iterate(vectors.detach(leaves), iterate.state), gradient, learned)

    def iterates(self, start: int, stop: int) -> list[Iterate]:
        """Where updates start, ..., stop - 1 started: recorded, or computed again from the last that was."""
        iterates: list[Iterate] = []
        for t in range(start, stop):
            recorded = self.updates[t].iterate
            iterates.append(self.phi(t - 1, iterates[-1], self.lam_at(t - 1)) if recorded is None else recorded)
        return iterates

    def iterate(self, t: int) -> Iterate:
        """Where update t started, without storing those before it."""
        start = max(i for i in range(t + 1) if self.updates[i].iterate is not None)
        iterate = self.recorded_iterate(start)
        for i in range(start, t):
            iterate = self.phi(i, iterate, self.lam_at(i))
        return iterate

    def recorded_iterate(self, t: int) -> Iterate:
        """Where update t started, which was recorded."""
        iterate = self.updates[t].iterate
        assert iterate is not None, f"the start of update {t} of {self.name} is not recorded"
        return iterate

    def segments(self) -> list[tuple[int, int]]:
        """(start, stop) of the stretches between recorded iterates, in order; together all updates."""
        recorded = [t for t, update in enumerate(self.updates) if update.iterate is not None]
        return list(pairwise([*recorded, len(self)]))

    def run(self, shift: Values) -> Vector:
        """theta_T when lam is lam + shift at every update, and in the start and the options. T gradients."""

        def shifted(values: Values) -> dict[str, Vector]:
            return {n: vectors.add(x, shift[n]) if n in shift else x for n, x in values.items()}

        now = shifted({name: vectors.detach(vector) for name, vector in self.lam.items()})
        with torch.no_grad():
            start = self.start(now)
            learned = self.learned_options(now)
        iterate = self.recorded_iterate(0)
        if start is not None:
            iterate = Iterate(vectors.detach(start), iterate.state)
        for t in range(len(self)):
            iterate = self.phi(t, iterate, shifted(self.lam_at(t)), learned)
        return iterate.theta
