"""Records what the steps of a program saw, as far as somebody's estimator asks for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from mlorun.core.graph import ProblemGraph
from mlorun.core.levels import Levels
from mlorun.core.problem import Problem
from mlorun.core.record import Record
from mlorun.core.world import Moment, World
from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.trajectory import Iterate, Keep, Step
from mlorun.hypergradient.updates import UPDATES, update_of
from mlorun.hypergradient.vectors import Vector

# where the streams of micro-batches were, for those whose batches are not to be kept
Places = list[Mapping[str, int] | None]


class Recorder:
    """Writes to the records of every problem.

    levels   what estimators read them by
    """

    def __init__(self, world: World, graph: ProblemGraph) -> None:
        self._world = world
        self._graph = graph
        self._records = {name: Record() for name in graph.names}
        self.levels = Levels(world, self._records)
        self._window: dict[str, list[Moment]] = {name: [] for name in sorted(graph.differentiated)}
        self._places: dict[str, Places] = {name: [] for name in self._window}
        self._copies: dict[str, tuple[tuple[int, ...], Vector]] = {}
        self._reads = {name: graph.read_by(name) for name in self._window}
        for name in self._window:
            self._prepare(world.problems[name])
        self._asked = frozenset(
            upper
            for upper in graph.names
            if any((h := world.problems[n].hypergradient) is not None and h.reads_outer for n in graph.between(upper))
        )

    def _prepare(self, problem: Problem) -> None:
        estimate, steers = problem.hypergradient, self._graph.between(problem.name)
        if estimate is None:
            return
        if estimate.keeps is not None or estimate.follows:
            _require_plain_steps(problem)
        if estimate.reruns and steers:
            raise ConfigError(
                f"{problem.name} steers {', '.join(steers)} itself: its inner loop cannot be run again alone",
                where=f"problems.{problem.name}.hypergradient",
                seen=type(estimate).__name__,
                fix=f"another hypergradient, e.g. {problem.name}.hypergradient=cg",
            )
        self._records[problem.name].keep = estimate.keeps

    def keep_everything(self) -> None:
        """Record from now on what any estimator could ask for; inner loops where the optimizer's step is known."""
        self._asked = frozenset(self._graph.names)
        for name in self._window:
            if type(self._world.problems[name].optimizer) in UPDATES:
                self._records[name].keep = Keep(None, "iterates")

    def peek(self, name: str) -> None:
        """See the micro-batch that `name` takes next, without taking it."""
        problem = self._world.problems[name]
        state = None if problem.stream is None else problem.stream.state_dict()
        with self._world.replay():
            batch = problem.get_batch()
        if problem.stream is not None and state is not None:
            problem.stream.load_state_dict(state)
        self._records[name].now = self._world.moment(batch)

    def start(self, name: str) -> None:
        """Call where an inner loop starts, and where it is taken back."""
        self._records[name].restart()

    def place(self, problem: Problem) -> dict[str, int] | None:
        """Call before a batch is taken: where the stream is, for a problem whose batches are not to be kept."""
        keep = self._records[problem.name].keep
        if keep is None or keep.thrift == "iterates" or problem.stream is None:
            return None
        return problem.stream.state_dict() if type(problem).get_batch is Problem.get_batch else None

    def see(self, name: str, batch: Any, place: Mapping[str, int] | None = None) -> None:
        """Call before a loss is evaluated on a micro-batch."""
        if name not in self._window and name not in self._asked:
            return
        moment = self._world.moment(batch)
        if name in self._window:
            self._window[name].append(moment)
            self._places[name].append(place)
        if name in self._asked:
            self._records[name].now = moment

    def before_update(self, problem: Problem) -> None:
        """Call before an optimizer step: the micro-batches seen so far are the ones it is made of."""
        name, estimate = problem.name, problem.hypergradient
        if name not in self._window:
            return
        record = self._records[name]
        moments = record.last = tuple(self._window[name])
        places = self._places[name]
        self._window[name], self._places[name] = [], []
        if estimate is not None and estimate.at == "pre":
            record.before = vectors.copy(problem.theta)
        if record.keep is not None:
            self._append(problem, record, record.keep, _thrifty(problem, moments, places))
        if estimate is not None and estimate.follows:
            step = Step(moments, _options(problem), {}, _iterate(problem))
            with self._world.replay():
                update = self.levels.updates(name, [step], self._reads[name], whole=record.tangents is None)
                record.tangents = estimate.follow(update, record.tangents)

    def _append(self, problem: Problem, record: Record, keep: Keep, moments: tuple[Moment, ...]) -> None:
        # the gradient of a problem that steers others is more than its loss's: its iterates cannot be computed again
        stride = 1 if self._graph.between(problem.name) else keep.stride(problem.pace.unroll_steps)
        kept = (len(record.loop) + record.dropped) % stride == 0
        lowers = {low: self._copy(low) for low in self._graph.lowers[problem.name]}
        iterate = _iterate(problem, copy=True) if kept else None
        record.loop.append(Step(moments, _options(problem), lowers, iterate))
        record.trim(stride)

    def _copy(self, name: str) -> Vector:
        """The parameters of `name` as they are; one copy for as long as they stay so."""
        theta = self._world.theta(name)
        versions = tuple(t._version for t in theta)
        if name not in self._copies or self._copies[name][0] != versions:
            self._copies[name] = versions, vectors.copy(theta)
        return self._copies[name][1]


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


def _thrifty(problem: Problem, moments: Sequence[Moment], places: Places) -> tuple[Moment, ...]:
    """Without the batches that the stream can make again."""
    stream = problem.stream
    return tuple(
        m if stream is None or place is None else m.thrifty(partial(stream.at, place))
        for m, place in zip(moments, places, strict=True)
    )


def _options(problem: Problem) -> tuple[Mapping[str, Any] | None, ...]:
    """The optimizer's options for each parameter; None for one that it does not hold."""
    groups: dict[int, Mapping[str, Any]] = {}
    for group in problem.optimizer.param_groups:
        options = {key: value for key, value in group.items() if key != "params"}
        groups |= dict.fromkeys(map(id, group["params"]), options)
    return tuple(groups.get(id(parameter)) for parameter in problem.theta)


def _iterate(problem: Problem, copy: bool = False) -> Iterate:
    kept = problem.optimizer.state
    state = [
        {key: value.clone() if copy else value for key, value in kept[p].items() if isinstance(value, Tensor)}
        if p in kept
        else {}
        for p in problem.theta
    ]
    return Iterate(vectors.copy(problem.theta) if copy else vectors.detach(problem.theta), tuple(state))
