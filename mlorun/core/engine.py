"""Executes the plan: batch, loss, gradient, optimizer; and tells listeners what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from typing import Any, final

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mlorun.core.adjoint import Adjoint
from mlorun.core.evaluation import Evaluation
from mlorun.core.graph import ProblemGraph
from mlorun.core.inner_loop import InnerLoop, begin
from mlorun.core.nonfinite import Guard, broken_gradient, broken_loss
from mlorun.core.plan import Action, Plan
from mlorun.core.probe import probe
from mlorun.core.problem import Metric, Problem, loss_of, metrics_of
from mlorun.core.recorder import Recorder
from mlorun.core.world import World
from mlorun.errors import GraphError, NonFiniteError
from mlorun.run.device import Precision
from mlorun.run.events import Event

Emit = Callable[[Event], None]


@final
class Engine:
    """A program ready to run.

    problems      by name; `engine.problems["classifier"].module` is a plain nn.Module
    train_iters   global steps in all
    valid_every   evaluate after every so many global steps, and at the end; 0 is only at the end
    log_every     report losses and metrics after every so many global steps, and at the end
    """

    def __init__(
        self,
        problems: Sequence[Problem],
        graph: ProblemGraph,
        *,
        device: torch.device,
        precision: Precision,
        train_iters: int,
        valid_every: int = 0,
        log_every: int = 100,
        evaluations: Sequence[Evaluation] = (),
    ) -> None:
        self.problems = {problem.name: problem for problem in problems}
        self.graph = graph
        self.plan = Plan.simulate(graph, {problem.name: problem.pace for problem in problems})
        self.device = device
        self.precision = precision
        self.train_iters = train_iters
        self.valid_every = valid_every
        self.log_every = log_every
        self.evaluations = tuple(evaluations)
        self.step_count = 0
        for problem in problems:
            problem.meet(self.problems)
        for name in sorted(graph.differentiated):
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
        self.world = World(self.problems, device)
        self.recorder = Recorder(self.world, graph)
        self.levels = self.recorder.levels
        self.adjoint = Adjoint(self.problems, graph, self.levels, self.world.replay)
        self.guard = Guard(at_once=device.type == "cpu")
        self._steering = frozenset(name for name in graph.names if graph.between(name))
        self._inner = {p.name: InnerLoop(p) for p in problems if p.pace.roll_back}
        self._scalers = {name: precision.make_scaler() for name in self.problems}
        self._measured: dict[str, dict[str, Tensor]] = {}
        self._newest: dict[str, Tensor | Mapping[str, Metric]] = {}
        self._stop = False
        self._probed = False

    def probe(self) -> None:
        """Evaluate every loss once and see that every declared edge is read. Leaves no trace. Raises GraphError."""
        probe(self.world, self.graph)
        self._probed = True

    def stop(self) -> None:
        """Ask a run to end after the global step at hand; safe to call from a signal handler."""
        self._stop = True

    @property
    def stopped(self) -> bool:
        """Whether somebody asked the run to end early."""
        return self._stop

    def run(self, emit: Emit = lambda event: None) -> dict[str, float]:
        """Train up to `train_iters`, or until stopped; the last evaluation's metrics, or else the last losses.

        Probes first, unless `probe` has been called. Raises NonFiniteError at the first report that finds a loss NaN or
        infinite.
        """
        if not self._probed:
            self.probe()
        metrics: dict[str, float] = {}
        evaluated = -1
        while self.step_count < self.train_iters and not self._stop:
            self._listen()
            for action in self.plan.at(self.step_count):
                self.execute(action)
            self._measured |= self.adjoint.numbers or {}
            self.step_count += 1
            step = self.step_count
            if step == self.train_iters or self._stop or step % self.log_every == 0:
                metrics |= self._report(emit)
            if self.valid_every and step % self.valid_every == 0:
                metrics |= self.evaluate(emit)
                evaluated = step
        if evaluated != self.step_count and not self._stop:
            metrics |= self.evaluate(emit)
        return metrics

    def _listen(self) -> None:
        """Let the adjoint measure the gradients of this global step if they are the last before a report."""
        due = min(self.train_iters, (self.step_count // self.log_every + 1) * self.log_every)
        last = any(self.plan.last_before(name, self.step_count, due) for name in self._steering)
        self.adjoint.numbers = {} if last else None

    def evaluate(self, emit: Emit = lambda event: None) -> dict[str, float]:
        """Every evaluation now: {"test/accuracy": 95.4, ...}."""
        found: dict[str, float] = {}
        for evaluation in self.evaluations:
            with self.precision.autocast():
                metrics = evaluation.run(self.world)
            emit(Event(self.step_count, "eval", evaluation.problem, metrics))
            found |= metrics
        return found

    def execute(self, action: Action) -> None:
        """One action of the plan."""
        if action.kind == "step":
            self._step(self.problems[action.problem], action)
        else:
            self._inner[action.problem].roll_back()
            self.recorder.start(action.problem)

    def _step(self, problem: Problem, action: Action) -> None:
        name = problem.name
        if action.starts:
            self.recorder.start(name)
            begin(problem)
            problem.on_inner_loop_start()
            if name in self._inner:
                self._inner[name].keep()
        place = self.recorder.place(problem)
        batch = problem.get_batch()
        self.recorder.see(name, batch, place)
        with self.precision.autocast():
            result = problem.training_step(batch)
        loss = loss_of(result, name)
        self._newest[name] = result
        self._add_gradient(problem, loss)
        problem.grad_callback()
        if action.updates:
            self.recorder.before_update(problem)
            self._update(problem, loss)
        if problem.stream is not None and problem.stream.position == 0:
            problem.epoch_callback()

    def _add_gradient(self, problem: Problem, loss: Tensor) -> None:
        """Direct gradient and hypergradients of one micro-batch, added to `.grad`."""
        count = problem.pace.gradient_accumulation
        scaler = self._scalers[problem.name]
        if count > 1:
            loss = loss / count
        if scaler is not None:
            loss = scaler.scale(loss)
        if problem.name not in self._steering:
            loss.backward(inputs=problem.theta)
            return
        scale = None if scaler is None else scaler.scale(torch.ones((), device=self.device))
        gradient = self.adjoint.gradient(problem.name, loss, scale)
        if scaler is None:  # which makes such a step vanish itself
            at, when = loss.detach() * count, f"step {self.step_count + 1}"
            gradient = self.guard(problem.name, gradient, lambda: self._broken(problem.name, float(at), when))
        for parameter, part in zip(problem.theta, gradient, strict=True):
            parameter.grad = part if parameter.grad is None else parameter.grad + part

    def _broken(self, name: str, loss: float, when: str) -> NonFiniteError:
        losses = {}
        with self.world.replay():
            for low in reversed(self.graph.between(name)):
                level = self.levels.level(low, ())
                losses[low] = float(level.loss(level.theta).detach())
        return broken_gradient(name, {**losses, name: loss}, self.adjoint.choices(), when)

    def _update(self, problem: Problem, loss: Tensor) -> None:
        """One optimizer step, and what goes with it."""
        scaler = self._scalers[problem.name]
        if scaler is not None:
            scaler.unscale_(problem.optimizer)
        if problem.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(problem.theta, problem.gradient_clip)
        if scaler is None:
            problem.custom_optimizer_step()
        else:
            scaler.step(problem.optimizer)
            scaler.update()
        if isinstance(problem.scheduler, ReduceLROnPlateau):
            problem.scheduler.step(loss.detach())
        elif problem.scheduler is not None:
            problem.scheduler.step()
        problem.param_callback()
        for parameter in problem.theta:
            parameter.grad = None

    def _report(self, emit: Emit) -> dict[str, float]:
        """The newest metrics of every problem, in one wait for the device."""
        newest = {name: metrics_of(self._newest[name]) for name in self.problems if name in self._newest}
        names = [(name, key) for name, metrics in newest.items() for key in metrics]
        if not names:
            return {}
        told = [(name, key) for name, parts in self._measured.items() for key in parts]
        flags = self.guard.flags
        values = [newest[name][key] for name, key in names] + [self._measured[name][key] for name, key in told]
        numbers = torch.stack([value.float().reshape(()) for value in (*values, *flags.values())]).tolist()
        about: dict[str, dict[str, float]] = {}
        for (name, key), number in zip(told, numbers[len(names) : len(values)], strict=True):
            about.setdefault(name, {})[key] = number
        found: dict[str, dict[str, float]] = {}
        for (name, key), number in zip(names, numbers[: len(names)], strict=True):
            found.setdefault(name, {})[key] = number
        for name, metrics in found.items():
            emit(Event(self.step_count, "train", name, metrics))
        for name, measured in about.items():
            emit(Event(self.step_count, "hypergradient", name, measured))
        self._measured = {}
        # lowers first: a broken one soon breaks those above it
        since = max(0, self.step_count - self.log_every)
        when = f"between steps {since} and {self.step_count} (engine.log_every=1 finds which)"
        for name in [name for name in self.graph.order if name in found]:
            if not isfinite(loss := found[name]["loss"]):
                raise broken_loss(name, loss, when)
        for name, flag in zip(flags, numbers[len(values) :], strict=True):
            if flag:
                raise self._broken(name, found[name]["loss"], when)
        flags.clear()
        return {f"{name}/{key}": number for name, parts in found.items() for key, number in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """What the future depends on, as plain containers, numbers and tensors."""
        return {
            "step": self.step_count,
            "problems": {name: self._problem_state(problem) for name, problem in self.problems.items()},
            "hypergradients": self.adjoint.state_dict(),
            "rng": {"torch": torch.get_rng_state()},
        }

    def _problem_state(self, problem: Problem) -> dict[str, Any]:
        scaler = self._scalers[problem.name]
        return {
            "module": problem.module.state_dict(),
            "optimizer": problem.optimizer.state_dict(),
            "scheduler": None if problem.scheduler is None else problem.scheduler.state_dict(),
            "stream": None if problem.stream is None else problem.stream.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
        }
