"""An inner loop as a differentiable map: the updates that took one problem from its start to where it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.updates import Options, State, Update
from mlorun.hypergradient.vectors import Vector

Values = Mapping[str, Vector]
# options of the optimizer that upper problems decide, by name: () tensors
Learned = Mapping[str, Tensor]


@dataclass(frozen=True)
class Keep:
    """What an estimator wants recorded of an inner loop.

    steps    the last so many updates; None is all of them
    thrift   "iterates": parameters and optimizer state before every update. "sqrt": before every ceil(sqrt(T))-th,
             for T updates an inner loop. "constant": before the first. What lies between is computed again.
    """

    steps: int | None
    thrift: str

    def stride(self, expected: int) -> int:
        """Updates from one kept iterate to the next, for loops of about `expected` updates."""
        if self.thrift == "iterates":
            return 1
        count = expected if self.steps is None else min(expected, self.steps)
        return count if self.thrift == "constant" else math.isqrt(count - 1) + 1


@dataclass(frozen=True)
class Iterate:
    """Parameters, and the optimizer's state for each of them, between two updates."""

    theta: Vector
    state: tuple[State, ...]

    def detach(self) -> Iterate:
        """The same values outside of any graph."""
        return Iterate(vectors.detach(self.theta), tuple({k: t.detach() for k, t in s.items()} for s in self.state))


@dataclass(frozen=True)
class Step:
    """One recorded update.

    seen      what the loss needs to be evaluated as the step saw it; opaque here
    options   the optimizer's options for each parameter; None for one that it does not hold
    lowers    the values of the lower optima that the loss read
    iterate   where it started, where that was kept
    """

    seen: Any
    options: tuple[Options | None, ...]
    lowers: Values
    iterate: Iterate | None


class Trajectory:
    """theta_0, theta_1 = Phi_0(theta_0, lam), ..., theta_T: `len` is T.

    whole    theta_0 is where the inner loop started; else earlier updates were let go
    first    updates before this one serve only to compute the iterates again, and are not to be differentiated
    lam      as Level.lam: live parameters of the uppers, and of the lower optima, that the losses read

    Each evaluation replays what its step saw, and leaves the program as it was.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[Step],
        *,
        lam: Values,
        whole: bool,
        first: int,
        loss: Callable[[Any, Values], Tensor],
        update: Update,
        clip: float | None,
        start: Callable[[Values], Vector | None],
        learned: Callable[[Values], Learned],
    ) -> None:
        self.name = name
        self.steps = tuple(steps)
        self.lam = dict(lam)
        self.whole = whole
        self.first = first
        self._loss = loss
        self._update = update
        self._clip = clip
        self._start = start
        self._learned = learned

    def __len__(self) -> int:
        return len(self.steps)

    def lam_at(self, t: int) -> dict[str, Vector]:
        """The values of `lam` that update t saw, detached: lower optima as they were then, uppers as they are."""
        then = self.steps[t].lowers
        return {name: vectors.detach(then.get(name, vector)) for name, vector in self.lam.items()}

    def start(self, lam: Values) -> Vector | None:
        """theta_0 as a function of lam, where upper problems decide it; None where it is what came before."""
        return self._start(lam) if self.whole else None

    def learned(self, lam: Values) -> dict[str, Tensor]:
        """The optimizer's options that upper problems decide, as functions of lam: () tensors by name.

        Raises ConfigError for an option that the optimizer's registered step does not know.
        """
        return dict(self._learned(lam))

    def loss(self, t: int, theta: Vector, lam: Values) -> Tensor:
        """The loss that update t descended, at other values, ()."""
        return self._loss(self.steps[t].seen, {**self.steps[t].lowers, **lam, self.name: theta})

    def gradient(self, t: int, theta: Vector, lam: Values, *, create_graph: bool) -> tuple[Tensor | None, ...]:
        """d loss / d theta of update t, None for a parameter that it does not read. theta must require a gradient."""
        return torch.autograd.grad(self.loss(t, theta, lam), theta, create_graph=create_graph, allow_unused=True)

    def apply(
        self, t: int, iterate: Iterate, gradient: Sequence[Tensor | None], learned: Learned | None = None
    ) -> Iterate:
        """Update t from its gradient: clipping and the optimizer's step, differentiable in every argument."""
        gradient = self._clipped(gradient)
        theta: list[Tensor] = []
        state: list[State] = []
        for options, at, kept, slope in zip(self.steps[t].options, iterate.theta, iterate.state, gradient, strict=True):
            if options is None or slope is None:  # as torch: without a gradient nothing moves
                theta.append(at)
                state.append(kept)
                continue
            after, kept_after = self._update.step({**options, **(learned or {})}, kept, at, slope)
            theta.append(after)
            state.append(kept_after)
        return Iterate(tuple(theta), tuple(state))

    def phi(self, t: int, iterate: Iterate, lam: Values, learned: Learned | None = None) -> Iterate:
        """Update t, without a graph."""
        leaves = tuple(x.detach().requires_grad_() for x in iterate.theta)
        gradient = self.gradient(t, leaves, lam, create_graph=False)
        with torch.no_grad():
            return self.apply(t, Iterate(vectors.detach(leaves), iterate.state), gradient, learned)

    def iterates(self, start: int, stop: int) -> list[Iterate]:
        """Where updates start, ..., stop - 1 started: recorded, or computed again from the last that was."""
        found: list[Iterate] = []
        for t in range(start, stop):
            kept = self.steps[t].iterate
            if kept is None:
                kept = self.phi(t - 1, found[-1], self.lam_at(t - 1))
            found.append(kept)
        return found

    def iterate(self, t: int) -> Iterate:
        """Where update t started, without storing those before it."""
        start = max(i for i in range(t + 1) if self.steps[i].iterate is not None)
        found = self.steps[start].iterate
        assert found is not None
        for i in range(start, t):
            found = self.phi(i, found, self.lam_at(i))
        return found

    def segments(self) -> list[tuple[int, int]]:
        """(start, stop) of the stretches between kept iterates, in order; together all updates."""
        kept = [t for t, step in enumerate(self.steps) if step.iterate is not None]
        return list(zip(kept, [*kept[1:], len(self)], strict=True))

    def run(self, shift: Values) -> Vector:
        """theta_T when lam is lam + shift at every update, and in the start and the options. T gradients."""

        def shifted(values: Values) -> dict[str, Vector]:
            return {n: vectors.add(x, shift[n]) if n in shift else x for n, x in values.items()}

        now = shifted({name: vectors.detach(vector) for name, vector in self.lam.items()})
        with torch.no_grad():
            start = self.start(now)
            learned = self.learned(now)
        first = self.steps[0].iterate
        assert first is not None
        if start is not None:
            first = Iterate(vectors.detach(start), first.state)
        iterate = first
        for t in range(len(self)):
            iterate = self.phi(t, iterate, shifted(self.lam_at(t)), learned)
        return iterate.theta

    def _clipped(self, gradient: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        if self._clip is None:
            return tuple(gradient)
        parts = [g for g in gradient if g is not None]
        # as torch.nn.utils.clip_grad_norm_
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in parts]))
        factor = (self._clip / (length + 1e-6)).clamp(max=1.0)
        return tuple(None if g is None else g * factor for g in gradient)
