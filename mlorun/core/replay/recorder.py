"""Writes the history of every problem's steps, as far as somebody's estimator needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.pure_steps import PURE_STEPS
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.core.replay.history import History
from mlorun.core.replay.snapshot import Snapshot
from mlorun.core.replay.views import Views
from mlorun.core.replay.watch import Watch, changed_update
from mlorun.data.batches import map_tensors
from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.inner_loop import Checkpointing, InnerLoop, RecordedUpdate
from mlorun.hypergradient.vectors import Vector


class Recorder:
    """Owns the histories.

    record_all   record what any estimator could need: of inner loops, where the optimizer's step is known
    rough        steps run in lower precision than replays do
    views        what estimators read the histories by
    watch        whether replays are what the steps were
    """

    def __init__(
        self, program: FunctionalProgram, graph: ProblemGraph, *, record_all: bool = False, rough: bool = False
    ) -> None:
        self.record_all = record_all
        self._program = program
        self._graph = graph
        self._histories = {name: History(rough=rough) for name in graph.names}
        self.views = Views(program, self._histories)
        self.watch = Watch(graph, self.views)
        self._recorded = frozenset(graph.differentiated)
        self._reads = {name: graph.read_by(name) for name in sorted(self._recorded)}
        self._copies: dict[str, tuple[tuple[int, ...], Vector]] = {}
        problems = program.problems
        for name in sorted(self._recorded):
            self._histories[name].checkpointing = self._checkpointing(problems[name], record_all)
        # problems whose loss is evaluated again by an estimator below
        self._reevaluated = frozenset(
            upper
            for upper in graph.names
            if record_all or any(_needs_upper_loss(problems[node]) for node in graph.nodes_on_paths(upper))
        )

    def _checkpointing(self, problem: Problem, record_all: bool) -> Checkpointing | None:
        """How inner loops are recorded. Raises ConfigError where the estimator cannot work on this problem."""
        estimate, below = problem.hypergradient, self._graph.nodes_on_paths(problem.name)
        if estimate is None:
            return None
        if estimate.needs.plain_steps:
            _require_plain_steps(problem)
        if estimate.needs.every_loop:
            _require_one_course(problem, self._graph)
        if estimate.needs.reruns_inner_loop and below:
            raise ConfigError(
                f"{problem.name} differentiates through {', '.join(below)} itself: "
                "its inner loop cannot be run again alone",
                where=f"problems.{problem.name}.hypergradient",
                seen=type(estimate).__name__,
                fix=f"another hypergradient, e.g. {problem.name}.hypergradient=cg",
            )
        if record_all and type(problem.optimizer) in PURE_STEPS:
            return Checkpointing(None, "iterates")
        return estimate.needs.inner_loop

    def next_snapshot(self, name: str) -> Snapshot:
        """Of the micro-batch that `name` takes next, without taking it."""
        problem = self._program.problems[name]
        position = None if problem.stream is None else problem.stream.state_dict()
        with self._program.replay():
            batch = problem.get_batch()
        if problem.stream is not None and position is not None:
            problem.stream.load_state_dict(position)
        return self._program.snapshot(batch, None)

    def start_inner_loop(self, name: str) -> None:
        """Call where an inner loop starts, and where it is taken back."""
        history, estimate = self._histories[name], self._program.problems[name].hypergradient
        tangents = history.tangents
        history.restart(None if estimate is None or tangents is None else estimate.kept_tangents(tangents))

    def position(self, problem: Problem) -> dict[str, int] | None:
        """Call before a batch is taken: where its stream is; None if the stream alone cannot make the batch again."""
        if problem.stream is None or problem.makes_batches:
            return None
        kept = problem.name in self._recorded or problem.name in self._reevaluated
        return problem.stream.state_dict() if kept else None

    def before_loss(self, name: str, batch: Any, position: Mapping[str, int] | None) -> None:
        """Call before a loss is evaluated on a micro-batch."""
        if name not in self._recorded and name not in self._reevaluated:
            return
        history = self._histories[name]
        if position is None:
            # whoever made the batch may fill the same memory, or the same list, with the next one
            batch = map_tensors(_in_memory_of_its_own, batch)
        snapshot = self._program.snapshot(batch, position)
        if name in self._recorded:
            history.window.append(snapshot)
        if name in self._reevaluated:
            history.current = snapshot

    def before_update(self, problem: Problem) -> None:
        """Call before an optimizer step: the micro-batches seen so far are the ones it is made of."""
        name, estimate = problem.name, problem.hypergradient
        if name not in self._recorded:
            return
        history = self._histories[name]
        history.last = tuple(history.window)
        history.window = []
        if estimate is None:
            return
        if estimate.needs.linearize == "before":
            history.before = vectors.copy(problem.theta)
            history.rates = vectors.copy(problem.update.learning_rates)
        if history.checkpointing is not None:
            self._append(problem, history, history.checkpointing)
        if estimate.needs.tangents:
            if history.tangents is not None:
                self.watch.before_tangents(problem)
            update = RecordedUpdate(history.last, problem.update.options(), {}, problem.update.iterate(copy=False))
            with self._program.replay():
                loop = InnerLoop((update,), whole=history.starts)
                view = self.views.view(name, self._reads[name], inner_loop=loop)
                history.tangents = estimate.propagate(view.trajectory(), history.tangents)
            history.starts = False

    def _append(self, problem: Problem, history: History, checkpointing: Checkpointing) -> None:
        # the gradient of a problem that steers others is more than its loss's: its iterates cannot be computed again
        alone = not self._graph.nodes_on_paths(problem.name)
        stride = checkpointing.stride(problem.update_schedule.unroll_steps) if alone else 1
        due = (len(history.updates) + history.dropped) % stride == 0
        snapshots = history.last
        if checkpointing.memory != "iterates":
            snapshots = tuple(snapshot.without_batch() for snapshot in snapshots)
        history.updates.append(
            RecordedUpdate(
                snapshots,
                problem.update.options(),
                {peer: self._copy(peer) for peer in self._moving_peers(problem)},
                problem.update.iterate(copy=True) if due else None,
            )
        )
        history.trim(stride)

    def _moving_peers(self, problem: Problem) -> tuple[str, ...]:
        """Whom the loss reads and who may step during its inner loop: lower optima, and what it takes for constants."""
        uppers = self._graph.uppers[problem.name]
        read = (*self._graph.lowers[problem.name], *sorted(problem.peers_read))
        return tuple(dict.fromkeys(peer for peer in read if peer != problem.name and peer not in uppers))

    def leave_out(self, name: str) -> None:
        """Call in place of `before_update` where the optimizer's step is left out: it is no part of the inner loop."""
        history = self._histories[name]
        if not history.last:  # there is no step before: let the problems above meet what is not finite, too
            history.last = tuple(history.window)
        history.window = []

    def _copy(self, name: str) -> Vector:
        """The parameters of `name` as they are; one copy for as long as they stay so."""
        theta = self._program.theta(name)
        versions = vectors.versions(theta)
        if name not in self._copies or self._copies[name][0] != versions:
            self._copies[name] = versions, vectors.copy(theta)
        return self._copies[name][1]

    def state_dict(self) -> dict[str, Any]:
        """Every history, as plain containers, numbers and tensors."""
        return {
            name: {**history.pack(), "tangents": self._packed_tangents(name)}
            for name, history in self._histories.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from these histories."""
        self.watch.forget_steps()
        for name, history in self._histories.items():
            history.unpack(state[name])
            estimate, packed = self._program.problems[name].hypergradient, state[name]["tangents"]
            history.tangents = None if estimate is None else estimate.unpack_tangents(packed)
            history.starts = history.tangents is None

    def _packed_tangents(self, name: str) -> Any:
        estimate = self._program.problems[name].hypergradient
        return None if estimate is None else estimate.pack_tangents(self._histories[name].tangents)


def _in_memory_of_its_own(tensor: Tensor) -> Tensor:
    return tensor if tensor.requires_grad else tensor.clone()


def _needs_upper_loss(problem: Problem) -> bool:
    return problem.hypergradient is not None and problem.hypergradient.needs.upper_loss


def _require_one_course(problem: Problem, graph: ProblemGraph) -> None:
    """Raise ConfigError where a problem's inner loops are not one course of its parameters, steered by uppers alone."""
    where = f"problems.{problem.name}"
    fix = f"{problem.name}.hypergradient=forward, whose tangents begin anew with every inner loop"
    if problem.update_schedule.roll_back:
        raise ConfigError(
            f"{problem.name} rolls back, and its tangents are kept from one inner loop to the next",
            where=f"{where}.roll_back",
            seen="roll_back: true",
            fix=fix,
        )
    if problem.update_schedule.warmup_steps and type(problem).optimizer_options is not Problem.optimizer_options:
        raise ConfigError(
            f"upper problems decide options of {problem.name}'s optimizer, but not during its warm-up, and its "
            "tangents are kept from there on",
            where=f"{where}.warmup_steps",
            seen=f"warmup_steps: {problem.update_schedule.warmup_steps}",
            fix=f"{where}.warmup_steps=0, or {fix}",
        )
    if optima := [name for name in graph.read_by(problem.name) if name in graph.lowers[problem.name]]:
        raise ConfigError(
            f"{problem.name} reads the optimum of {optima[0]}, and its tangents are kept from one inner loop to the "
            "next: they would take that optimum for a constant of all loops",
            where=f"{where}.hypergradient",
            seen=type(problem.hypergradient).__name__,
            fix=fix,
        )


def _require_plain_steps(problem: Problem) -> None:
    """Raise ConfigError where an update is not the optimizer's step on the loss's gradient, or that step is unknown."""
    assert problem.update.pure
    # a param_callback that writes a parameter is refused when it does: see Watch.after_callback
    for hook in ("grad_callback", "custom_optimizer_step"):
        if getattr(type(problem), hook) is not getattr(Problem, hook):
            raise changed_update(problem, hook)
    optimizer = problem.optimizer
    of_optimizer = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if of_optimizer or any(parameter._backward_hooks for parameter in problem.theta):
        whose = "optimizer" if of_optimizer else "parameters"
        raise ConfigError(
            f"hooks of {problem.name}'s {whose} change what an update does, so that it cannot be unrolled",
            where=f"problems.{problem.name}.{'optimizer' if of_optimizer else 'module'}",
            seen=type(optimizer).__name__ if of_optimizer else "register_hook",
            fix=f"another hypergradient, e.g. {problem.name}.hypergradient=t1t2, or drop the hooks",
        )
