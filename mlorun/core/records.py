"""Records what the steps of differentiated problems saw, and builds the Level that estimators are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mlorun.core.decay import l2_decay, learning_rates, momenta
from mlorun.core.graph import ProblemGraph
from mlorun.core.inner_loop import learned_options
from mlorun.core.problem import Problem
from mlorun.core.world import Moment, World, cast
from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Hypergradient, Level, Outer, Report
from mlorun.hypergradient.trajectory import Iterate, Keep, Step, Trajectory, Values
from mlorun.hypergradient.updates import UPDATES, precondition, update_of
from mlorun.hypergradient.vectors import Vector

Moments = tuple[Moment, ...]


class Records:
    """Each differentiated problem's last optimizer step; the whole inner loop where its estimator keeps that."""

    def __init__(self, world: World, graph: ProblemGraph) -> None:
        self._world = world
        self._graph = graph
        self._window: dict[str, list[Moment]] = {name: [] for name in sorted(graph.differentiated)}
        self._last: dict[str, Moments] = {}
        self._before: dict[str, Vector] = {}
        self._now: dict[str, Moment] = {}
        self._copies: dict[str, tuple[tuple[int, ...], Vector]] = {}
        self._loops: dict[str, list[Step]] = {name: [] for name in self._window}
        self._places: dict[str, list[Mapping[str, int] | None]] = {name: [] for name in self._window}
        self._dropped = dict.fromkeys(self._window, 0)
        self._tangents: dict[str, Any] = {}
        self._keeps: dict[str, Keep] = {}
        self._dtype: torch.dtype | None = None
        self._values: dict[str, Vector] = {}
        for name in self._window:
            estimate = world.problems[name].hypergradient
            if estimate is not None and (estimate.keeps is not None or estimate.follows):
                _require_plain_steps(world.problems[name])
            if estimate is not None and estimate.reruns and graph.between(name):
                raise ConfigError(
                    f"{name} steers {', '.join(graph.between(name))} itself: its inner loop cannot be run again alone",
                    where=f"problems.{name}.hypergradient",
                    seen=type(estimate).__name__,
                    fix=f"another hypergradient, e.g. {name}.hypergradient=cg",
                )
            if estimate is not None and estimate.keeps is not None:
                self._keeps[name] = estimate.keeps
        self._reads = {name: graph.read_by(name) for name in self._window}
        self._asked = frozenset(
            upper
            for upper in graph.names
            if any((h := world.problems[n].hypergradient) is not None and h.reads_outer for n in graph.between(upper))
        )

    def keep_everything(self) -> None:
        """Record from now on what any estimator could ask for; inner loops where the optimizer's step is known."""
        self._asked = frozenset(self._graph.names)
        for name in self._window:
            if type(self._world.problems[name].optimizer) in UPDATES:
                self._keeps[name] = Keep(None, "iterates")

    def peek(self, name: str) -> None:
        """See the micro-batch that `name` takes next, without taking it."""
        problem = self._world.problems[name]
        state = None if problem.stream is None else problem.stream.state_dict()
        with self._world.replay():
            batch = problem.get_batch()
        if problem.stream is not None and state is not None:
            problem.stream.load_state_dict(state)
        self._now[name] = self._world.moment(batch)

    def to(self, dtype: torch.dtype) -> Records:
        """The same records in another precision, of the parameters as they are now; for comparisons."""
        other = copy(self)
        other._dtype = dtype
        other._values = {
            name: tuple(cast(dtype, t.detach()).requires_grad_() for t in self._world.theta(name))
            for name in self._graph.names
        }
        other._last = {name: tuple(m.to(dtype) for m in moments) for name, moments in self._last.items()}
        other._now = {name: moment.to(dtype) for name, moment in self._now.items()}
        other._before = {name: tuple(cast(dtype, t) for t in theta) for name, theta in self._before.items()}
        other._loops = {name: [_cast_step(dtype, step) for step in loop] for name, loop in self._loops.items()}
        return other

    def follow_again(self, name: str, estimate: Hypergradient, reads: tuple[str, ...]) -> None:
        """Let an estimator that follows go through the kept inner loop, as if it had been there."""
        tangents = None
        for t, step in enumerate(self._loops[name]):
            update = self._trajectory(name, [step], reads, whole=t == 0, first=0)
            tangents = estimate.follow(update, tangents)
        self._tangents[name] = tangents

    def theta(self, name: str) -> Vector:
        """The parameters that losses are differentiated in."""
        return self._values.get(name) or self._world.theta(name)

    def place(self, problem: Problem) -> dict[str, int] | None:
        """Call before a batch is taken: where the stream is, for a problem whose batches are not to be kept."""
        keep = self._keeps.get(problem.name)
        if keep is None or keep.thrift == "iterates" or problem.stream is None:
            return None
        return problem.stream.state_dict() if type(problem).get_batch is Problem.get_batch else None

    def see(self, name: str, batch: Any, place: Mapping[str, int] | None = None) -> None:
        """Call before a loss is evaluated on a micro-batch."""
        if name not in self._window and name not in self._asked:
            return
        moment = self._world.moment(batch)
        if name in self._loops:
            self._places[name].append(place)
        if name in self._window:
            self._window[name].append(moment)
        if name in self._asked:
            self._now[name] = moment

    def start(self, name: str) -> None:
        """Call where an inner loop starts, and where it is taken back."""
        if name in self._loops:
            self._loops[name] = []
            self._dropped[name] = 0
            self._tangents.pop(name, None)

    def before_update(self, problem: Problem) -> None:
        """Call before an optimizer step: the micro-batches seen so far are the ones it is made of."""
        name = problem.name
        if name not in self._window:
            return
        moments = self._last[name] = tuple(self._window[name])
        places = self._places[name]
        self._window[name], self._places[name] = [], []
        estimate = problem.hypergradient
        if estimate is not None and estimate.at == "pre":
            self._before[name] = vectors.copy(problem.theta)
        if name in self._keeps:
            self._append(problem, self._thrifty(problem, moments, places))
        if estimate is not None and estimate.follows:
            step = Step(moments, self._options(problem), {}, _iterate(problem))
            whole = name not in self._tangents
            with self._world.replay():
                update = self._trajectory(name, [step], self._reads[name], whole=whole, first=0)
                self._tangents[name] = estimate.follow(update, self._tangents.get(name))

    def _thrifty(self, problem: Problem, moments: Moments, places: Sequence[Mapping[str, int] | None]) -> Moments:
        """Without the batches that the stream can make again."""
        stream = problem.stream
        return tuple(
            m if stream is None or place is None else m.thrifty(partial(stream.at, place))
            for m, place in zip(moments, places, strict=True)
        )

    def _append(self, problem: Problem, moments: Moments) -> None:
        name, keep, loop = problem.name, self._keeps[problem.name], self._loops[problem.name]
        # the gradient of a problem that steers others is more than its loss's: its iterates cannot be computed again
        stride = 1 if self._graph.between(name) else keep.stride(problem.pace.unroll_steps)
        kept = (len(loop) + self._dropped[name]) % stride == 0
        lowers = {low: self._copy(low) for low in self._graph.lowers[name]}
        loop.append(Step(moments, self._options(problem), lowers, _iterate(problem, copy=True) if kept else None))
        while keep.steps is not None and len(loop) - stride >= keep.steps:
            del loop[:stride]
            self._dropped[name] += stride

    def _copy(self, name: str) -> Vector:
        """The parameters of `name` as they are; one copy for as long as they stay so."""
        theta = self._world.theta(name)
        versions = tuple(t._version for t in theta)
        if name not in self._copies or self._copies[name][0] != versions:
            self._copies[name] = versions, vectors.copy(theta)
        return self._copies[name][1]

    def level(
        self, name: str, reads: tuple[str, ...], outer: Outer | None = None, report: Report | None = None
    ) -> Level:
        """The level of `name` at its last optimizer step, for the problems in `reads` to differentiate."""
        problem = self._world.problems[name]
        theta = self._before.get(name) or vectors.detach(self.theta(name))
        moments = self._last[name]
        return Level(
            name,
            theta,
            {other: self.theta(other) for other in reads},
            lambda values: self._loss(name, moments, values),
            decay=lambda: l2_decay(problem.optimizer, problem.theta),
            learning_rates=lambda: learning_rates(problem.optimizer, problem.theta),
            momenta=lambda: momenta(problem.optimizer, problem.theta),
            precondition=partial(precondition, problem.optimizer, problem.theta),
            outer=outer,
            trajectory=lambda: self.trajectory(name, reads),
            tangents=self._tangents.get(name),
            report=report,
        )

    def outer_loss(self, name: str, values: Values) -> Tensor:
        """The loss of `name`'s micro-batch at hand, (), with `values` put in."""
        return self._loss(name, (self._now[name],), values)

    def trajectory(self, name: str, reads: tuple[str, ...]) -> Trajectory:
        """The inner loop of `name` so far."""
        steps, keep = self._loops[name], self._keeps[name]
        first = 0 if keep.steps is None else max(0, len(steps) - keep.steps)
        return self._trajectory(name, steps, reads, whole=self._dropped[name] == 0, first=first)

    def _trajectory(
        self, name: str, steps: list[Step], reads: tuple[str, ...], *, whole: bool, first: int
    ) -> Trajectory:
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

    def _loss(self, name: str, moments: Moments, values: Values) -> Tensor:
        with self._world.replay(), self._in_precision():
            return self._world.loss(name, moments, {**self._values, **values})

    def _substituted(self, values: Values, function: Callable[[], Any]) -> Any:
        with self._in_precision(), self._world.substituted({**self._values, **values}):
            return function()

    def _in_precision(self) -> AbstractContextManager[None]:
        return nullcontext() if self._dtype is None else self._world.parameters_as(self._dtype)

    def _options(self, problem: Problem) -> tuple[Mapping[str, Any] | None, ...]:
        groups: dict[int, Mapping[str, Any]] = {}
        for group in problem.optimizer.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            groups |= dict.fromkeys(map(id, group["params"]), options)
        return tuple(groups.get(id(parameter)) for parameter in problem.theta)


def _require_plain_steps(problem: Problem) -> None:
    """Raise ConfigError where an update is not the optimizer's step on the loss's gradient, or that step is unknown."""
    update_of(problem.optimizer)
    for hook in ("grad_callback", "param_callback", "custom_optimizer_step"):
        if getattr(type(problem), hook) is not getattr(Problem, hook):
            raise ConfigError(
                f"{type(problem).__name__}.{hook} changes what an update does, so that it cannot be unrolled",
                where=f"problems.{problem.name}.hypergradient",
                seen=type(problem.hypergradient).__name__,
                fix=f"another hypergradient, e.g. {problem.name}.hypergradient=t1t2, or drop {hook}",
            )


def _iterate(problem: Problem, copy: bool = False) -> Iterate:
    kept = problem.optimizer.state
    state = [
        {key: value.clone() if copy else value for key, value in kept[p].items() if isinstance(value, Tensor)}
        if p in kept
        else {}
        for p in problem.theta
    ]
    return Iterate(vectors.copy(problem.theta) if copy else vectors.detach(problem.theta), tuple(state))


def _cast_step(dtype: torch.dtype, step: Step) -> Step:
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


def _vector(tensors: Any) -> Vector | None:
    return None if tensors is None else tuple(tensors)
