"""A program at run: walks the plan, offers its steps as iterators, and owns everything that a step changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, final

import torch

from mlorun.core.adjoint import Adjoint
from mlorun.core.callback import Callback
from mlorun.core.evaluation import Evaluation
from mlorun.core.nonfinite import Guard, check_metrics
from mlorun.core.probe import probe
from mlorun.core.program.graph import Edges, ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import Action, Plan
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.core.replay.recorder import Recorder
from mlorun.core.replay.views import Views
from mlorun.core.report import Emit, Reporter
from mlorun.core.roll_back import RollBack
from mlorun.core.skips import Skips
from mlorun.core.stepper import Stepper
from mlorun.errors import GraphError
from mlorun.hypergradient.vectors import Vector
from mlorun.run import generators
from mlorun.run.device import Precision
from mlorun.run.events import Event
from mlorun.run.generators import GeneratorState, OwnGenerators

log = logging.getLogger("mlorun.core")

CPU = torch.device("cpu")


@final
class Engine:
    """A program ready to run. It owns everything that a step changes: see `state_dict`.

    problems      by name; `engine.problems["classifier"].module` is a plain nn.Module
    dependencies  the graph of the problems, or what it is built from: {"u2l": {"reweight": ["classifier"]}}
    train_iters   global steps in all
    valid_every   evaluate after every so many global steps, and at the end; 0 is only at the end
    log_every     report losses and metrics after every so many global steps, and at the end
    device        that the problems' modules are on
    precision     of losses; None is float32
    seed          of all random numbers that losses draw; None leaves the generators to the caller
    plan          in place of the one that the problems' update schedules make
    record_all    record what any estimator could need, so that all can be compared
    skips         leave out steps whose loss or gradient is not finite, at most so many of a problem in a row; None ends
                  the run at the first one that is seen
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        dependencies: ProblemGraph | Mapping[str, Edges | Mapping[str, Sequence[str]]] | None = None,
        *,
        train_iters: int,
        valid_every: int = 0,
        log_every: int = 100,
        evaluations: Sequence[Evaluation] = (),
        device: torch.device = CPU,
        precision: Precision | None = None,
        seed: int | None = None,
        plan: Plan | None = None,
        record_all: bool = False,
        skips: int | None = None,
    ) -> None:
        self.problems = {problem.name: problem for problem in problems}
        self.graph = (
            dependencies
            if isinstance(dependencies, ProblemGraph)
            else ProblemGraph.build(tuple(self.problems), **(dependencies or {}))
        )
        schedules = {problem.name: problem.update_schedule for problem in problems}
        self.plan = plan or Plan.simulate(self.graph, schedules)
        self.device = device
        self.precision = precision or Precision("fp32", device)
        self.train_iters = train_iters
        self.valid_every = valid_every
        self.log_every = log_every
        self.evaluations = tuple(evaluations)
        self.step_count = 0
        self.stop_reason: str | None = None
        for problem in problems:
            problem.bind_peers(self.problems)
            problem.update.scaler = self.precision.make_scaler()
        self._check_owners()
        self._check_differentiated()
        self.program = FunctionalProgram(self.problems, device)
        self.recorder = Recorder(self.program, self.graph, record_all=record_all, rough=self.precision.name != "fp32")
        self.adjoint = Adjoint(self.graph, self.recorder.views)
        self.guard = Guard(self.recorder.views, self.adjoint, at_once=device.type == "cpu")
        at_once = device.type == "cpu"
        skipping = None if skips is None else Skips(self.problems, self.adjoint, most=skips, at_once=at_once)
        self.reporter = Reporter(self.graph, self.guard, skipping)
        self._roll_backs = {p.name: RollBack(p) for p in problems if p.update_schedule.roll_back}
        self.stepper = Stepper(
            self.problems,
            self.precision,
            self.recorder,
            self.adjoint,
            self.guard,
            self.reporter,
            self._roll_backs,
            skipping,
        )
        self._actions_done = 0  # of the global step at hand
        self._metrics: dict[str, float] = {}  # the newest of every report and evaluation
        self.metric_steps: dict[str, int] = {}  # at which step each of them was
        self.metric_names: tuple[str, ...] = ()  # what a probe has seen
        self._evaluated = -1  # the step of the last evaluation
        self._stop = False
        self._probed = False
        # None leaves the global generators to the caller
        self._generators = None if seed is None else OwnGenerators(generators.seeded(seed, device), device)

    def _check_owners(self) -> None:
        owners: dict[int, str] = {}
        for name, problem in self.problems.items():
            for parameter in problem.theta:
                other = owners.setdefault(id(parameter), name)
                if other != name:
                    raise GraphError(
                        f"{other} and {name} both train one parameter",
                        where=f"problems.{name}",
                        seen=f"a parameter of shape {tuple(parameter.shape)}",
                        fix="leave it out of one problem's trainable_parameters",
                    )

    def _check_differentiated(self) -> None:
        for name in sorted(self.graph.differentiated):
            if self.problems[name].hypergradient is None:
                raise GraphError(
                    f"somebody differentiates through {name}, which has no hypergradient",
                    where=f"problems.{name}.hypergradient",
                    fix=f"choose one: {name}.hypergradient=t1t2",
                )
            if any(group.get("maximize") for group in self.problems[name].optimizer.param_groups):
                raise GraphError(
                    f"{name} maximizes its loss, and somebody differentiates through its minimum",
                    where=f"problems.{name}.optimizer.maximize",
                    fix="minimize the negative loss",
                )

        for upper in self.graph.names:
            estimates = {name: self.problems[name].hypergradient for name in self.graph.nodes_on_paths(upper)}
            own_loss = {name for name, e in estimates.items() if e is not None and e.needs.nested == "own_loss"}
            self.graph.sweep_order(upper, own_loss)

    # the loop

    def probe(self) -> None:
        """Evaluate every loss once, and a batch of every evaluation, and see that every declared edge is read. Leaves
        no trace. Raises GraphError or ConfigError."""
        with self._held_generators():
            probed = probe(self.program, self.graph)
            if not probed.draws_on_host:
                self.program.leave_host_generators()
            evaluated = [name for one in self.evaluations for name in one.probe(self.program)]
        self.metric_names = (*probed.metrics, *evaluated)
        updates = self.plan.updates(self.train_iters)
        for name in self.graph.names if self.train_iters else ():
            if not updates[name]:
                log.warning(
                    "%s takes no step in engine.train_iters=%s: see mlorun graph for the order of steps",
                    name,
                    f"{self.train_iters:,}",
                )
        self._probed = True

    def run(self, emit: Emit = lambda event: None, callbacks: Sequence[Callback] = ()) -> dict[str, float]:
        """Train up to `train_iters`, or until stopped; the newest metrics of every report and evaluation.

        Probes first, unless `probe` has been called. Raises NonFiniteError at the first report or evaluation that finds
        a metric NaN or infinite.
        """
        if not self._probed:
            self.probe()
        for callback in callbacks:
            callback.on_run_start(self)
        with self._held_generators():
            for action in self._walk():
                if action is not None:
                    continue
                step = self.step_count
                for callback in callbacks:
                    callback.on_step_end(self)
                # an interrupted run goes on later: it says here what it would have said without the interruption
                reports = step == self.train_iters or step % self.log_every == 0 or self.stop_reason is not None
                if reports:
                    self._report_to(emit, callbacks)
                if self.valid_every and step % self.valid_every == 0:
                    self._evaluate_for(emit, callbacks)
                if self.stop_reason is not None and not reports:  # stopped by a callback that saw the evaluation
                    self._report_to(emit, callbacks)
                for callback in callbacks:
                    callback.on_step_complete(self)
        if self._evaluated != self.step_count and not self.interrupted:
            self._evaluate_for(emit, callbacks)
        with self._held_generators(), self.program.evaluating():
            for problem in self.problems.values():
                problem.on_run_end()
        for callback in callbacks:
            callback.on_run_end(self)
        return dict(self._metrics)

    def steps(self) -> Iterator[int]:
        """Train up to `train_iters`, or until stopped; after every global step, how many were done.

        Nothing is reported or evaluated; call `report` and `evaluate` where wanted. What is left undone when the caller
        stops asking is done by the next iterator. Between two steps the global random numbers are the caller's.
        """
        for action in self._lent_generators():
            if action is None:
                yield self.step_count

    def actions(self) -> Iterator[Action]:
        """As `steps`, but gives every action of the plan right before it is executed; `step_count` is the number of
        global steps done."""
        for action in self._lent_generators():
            if action is not None:
                yield action

    def _lent_generators(self) -> Iterator[Action | None]:
        """As `_walk`, with the generators this engine's while it works, and the caller's in between."""
        walk = self._walk()
        while True:
            with self._held_generators():
                try:
                    action = next(walk)
                except StopIteration:
                    return
            yield action

    def _walk(self) -> Iterator[Action | None]:
        """Every action before it is executed, and None after every global step.

        Whoever is given an action may load another state, or take it by another iterator: it is not executed twice.
        """
        while self.step_count < self.train_iters and not self._stop:
            step, measure, actions = self.step_count, self._measures(), self.plan.at(self.step_count)
            while self.step_count == step and (done := self._actions_done) < len(actions):
                yield actions[done]
                if (self.step_count, self._actions_done) == (step, done):
                    self.program.clock.step = step
                    try:
                        self.stepper.execute(actions[done], measure, step)
                    except Exception as error:
                        error.add_note(f"in a step of {actions[done].problem}, after {step:,} global steps")
                        raise
                    self._actions_done += 1
            if self.step_count == step:
                self._actions_done = 0
                self.step_count += 1
                self.program.clock.step = self.step_count
                yield None

    def stop(self, reason: str | None = None) -> None:
        """Ask a run to end after the global step at hand; safe to call from a signal handler.

        reason   why it is complete, e.g. that a metric improves no more; None where it is interrupted
        """
        self.stop_reason = self.stop_reason or reason
        self._stop = True

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the run to end early."""
        return self._stop

    @property
    def interrupted(self) -> bool:
        """Whether somebody asked the run to end early, without a reason that makes it complete."""
        return self._stop and self.stop_reason is None

    def report(self, emit: Emit = lambda event: None) -> dict[str, float]:
        """The newest metrics of every problem, {"classifier/loss": 0.3, ...}, in one wait for the device.

        Raises NonFiniteError where a loss, or a hypergradient since the last report, is not finite.
        """
        return self.reporter.report(self.step_count, emit, self.log_every)

    def evaluate(self, emit: Emit = lambda event: None) -> dict[str, float]:
        """Every evaluation now: {"test/accuracy": 95.4, ...}."""
        everything: dict[str, float] = {}
        for evaluation in self.evaluations:
            with self._held_generators(), self.precision.autocast():
                metrics = evaluation.run(self.program)
            emit(Event(self.step_count, "eval", evaluation.problem, metrics))
            everything |= metrics
        return everything

    def views_before(self, name: str) -> Views:
        """What estimators would see in the next step of `name`, on the micro-batch that it will take; nothing is
        changed."""
        with self._held_generators():
            return self.recorder.views.on_batch(name, self.recorder.next_snapshot(name))

    def gradient(self, name: str) -> Vector:
        """The gradient of the next micro-batch of `name`, through every optimum below it; nothing is changed.

        In the parameters' own precision, without the scale of an accumulation. Estimators that keep something between
        calls start from what they have.
        """
        views = self.views_before(name)
        with self._held_generators():
            adjoint = Adjoint(self.graph, views)
            adjoint.load_state_dict(self.adjoint.state_dict())
            return adjoint.gradient(name, views.upper_loss(name)({})).vector

    def _report_to(self, emit: Emit, callbacks: Sequence[Callback]) -> None:
        metrics = self.report(emit)
        may_be = self.reporter.skips is not None  # the newest step is then one that was left out
        check_metrics(metrics, f"the report at step {self.step_count}", losses_may_be=may_be)
        self._keep(metrics)
        for callback in callbacks:
            callback.on_report(self, metrics)

    def _evaluate_for(self, emit: Emit, callbacks: Sequence[Callback]) -> None:
        metrics = self.evaluate(emit)
        check_metrics(metrics, f"the evaluation at step {self.step_count}")
        self._keep(metrics)
        self._evaluated = self.step_count
        for callback in callbacks:
            callback.on_evaluation(self, metrics)

    @property
    def remarks(self) -> dict[str, str]:
        """What a person must know of the run that is no metric: sentences, by what they are about."""
        return {**self.reporter.remarks, **self.recorder.watch.remarks}

    @property
    def newest_metrics(self) -> dict[str, float]:
        """The newest of every report and evaluation; `metric_steps` says of which step."""
        return dict(self._metrics)

    def _keep(self, metrics: Mapping[str, float]) -> None:
        self._metrics |= metrics
        self.metric_steps |= dict.fromkeys(metrics, self.step_count)

    def save_artifacts(self, sink: Callable[[str, Any, int], None] | None) -> None:
        """Give what problems save to `sink`, called with name, value and step; None: to nobody."""
        for problem in self.problems.values():
            problem.artifact_sink = sink

    def _measures(self) -> bool:
        """Whether gradients of this global step are measured: some upper problem steps here last before a report."""
        due = min(self.train_iters, (self.step_count // self.log_every + 1) * self.log_every)
        uppers = (name for name in self.graph.names if self.adjoint.below(name))
        return any(self.plan.last_before(name, self.step_count, due) for name in uppers)

    def _held_generators(self) -> AbstractContextManager[None]:
        return nullcontext() if self._generators is None else self._generators.held()

    # its state

    def state_dict(self) -> dict[str, Any]:
        """Everything that the future depends on, as plain containers, numbers, texts and tensors.

        The tensors are the live ones, not copies: `state.live_tensors` lists them by name. Callbacks and loggers have
        states of their own.
        """
        present = generators.read(self.device) if self._generators is None else self._generators.state
        return {
            "step": self.step_count,
            "actions_done": self._actions_done,
            "metrics": dict(self._metrics),
            "metric_steps": dict(self.metric_steps),
            "evaluated": self._evaluated,
            "stop_reason": self.stop_reason,
            "problems": {name: _problem_state(problem) for name, problem in self.problems.items()},
            "adjoint": self.adjoint.state_dict(),
            "history": self.recorder.state_dict(),
            "roll_back": {name: roll_back.state_dict() for name, roll_back in self._roll_backs.items()},
            "report": self.reporter.state_dict(),
            "generators": present.pack(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from this state, bit for bit, in an engine built from the same config. Nothing is shared with it."""
        state = deepcopy(dict(state))
        self.step_count = state["step"]
        self._actions_done = state["actions_done"]
        self.program.clock.step = self.step_count
        self._metrics, self._evaluated = state["metrics"], state["evaluated"]
        self.metric_steps = state["metric_steps"]
        self.stop_reason = state["stop_reason"]
        self._stop = self.stop_reason is not None
        for name, problem in self.problems.items():
            _load_problem(problem, state["problems"][name])
        self.adjoint.load_state_dict(state["adjoint"])
        self.recorder.load_state_dict(state["history"])
        for name, roll_back in self._roll_backs.items():
            roll_back.load_state_dict(state["roll_back"][name])
        self.reporter.load_state_dict(state["report"])
        generators_then = GeneratorState.unpack(state["generators"])
        if self._generators is None:
            self._generators = OwnGenerators(generators_then, self.device)
        else:
            self._generators.put(generators_then)


def _problem_state(problem: Problem) -> dict[str, Any]:
    return {
        "module": problem.module.state_dict(),
        "modes": tuple(module.training for module in problem.module.modules()),
        "update": problem.update.state_dict(),
        "stream": None if problem.stream is None else problem.stream.state_dict(),
        "own": dict(problem.state_dict()),
    }


def _load_problem(problem: Problem, state: Mapping[str, Any]) -> None:
    problem.module.load_state_dict(state["module"])
    for module, training in zip(problem.module.modules(), state["modes"], strict=True):
        module.training = training
    problem.update.load_state_dict(state["update"])
    if problem.stream is not None:
        problem.stream.load_state_dict(state["stream"])
    problem.load_state_dict(state["own"])
