"""One action of the plan: batch, loss, gradient, update."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlorun.core.adjoint import Adjoint
from mlorun.core.nonfinite import Guard
from mlorun.core.program.problem import Problem, loss_of
from mlorun.core.program.schedule import Action
from mlorun.core.replay.recorder import Recorder
from mlorun.core.report import Reporter
from mlorun.core.roll_back import RollBack
from mlorun.core.skips import Skips
from mlorun.errors import GraphError
from mlorun.hypergradient import derivatives, vectors
from mlorun.run.device import Precision


class Stepper:
    """Executes actions on what the engine owns. Keeps nothing itself."""

    def __init__(
        self,
        problems: Mapping[str, Problem],
        precision: Precision,
        recorder: Recorder,
        adjoint: Adjoint,
        guard: Guard,
        reporter: Reporter,
        roll_backs: Mapping[str, RollBack],
        skips: Skips | None,
    ) -> None:
        self._problems = problems
        self._precision = precision
        self._recorder = recorder
        self._adjoint = adjoint
        self._guard = guard
        self._reporter = reporter
        self._roll_backs = roll_backs
        self._skips = skips

    def execute(self, action: Action, measure: bool, step_count: int) -> None:
        """One action in the global step after `step_count` others; `measure`: hypergradients give telemetry."""
        problem = self._problems[action.problem]
        if action.kind == "step":
            self._step(problem, action, measure, step_count)
        else:
            self._roll_backs[problem.name].restore()
            problem.restart_inner_loop()  # under the new upper parameters
            self._recorder.start_inner_loop(problem.name)

    def _step(self, problem: Problem, action: Action, measure: bool, step_count: int) -> None:
        name = problem.name
        if action.starts:
            self._recorder.start_inner_loop(name)
            problem.restart_inner_loop()
            written = vectors.versions(problem.theta)
            problem.on_inner_loop_start()
            if name in self._roll_backs:
                self._recorder.watch.at_start(problem, written)
                self._roll_backs[name].keep()
        kept = None if self._skips is None else self._skips.before(name)
        position = self._recorder.position(problem)
        batch = problem.get_batch()
        self._recorder.before_loss(name, batch, position)
        with self._precision.autocast():
            result = problem.training_step(batch)
        loss = loss_of(result, name)
        self._reporter.see(name, result)
        try:
            self._add_gradient(problem, loss, measure, step_count)
        except RuntimeError as error:
            self._check_frozen(error)
            raise
        problem.grad_callback()
        finite = True if self._skips is None or kept is None else self._skips.look(problem, loss, kept)
        if action.updates:
            watch = self._recorder.watch
            if finite is False:
                self._recorder.leave_out(name)
            else:
                self._recorder.before_update(problem)
                watch.see_gradient(problem, due=measure)
            scaled = problem.update.scaler is not None
            problem.update.step(loss, problem.custom_optimizer_step, scaled or finite)
            if self._skips is not None:
                self._skips.close(name)
            watch.after_step(problem)
            problem.param_callback()
            watch.after_callback(problem, due=measure)
            problem.update.clear_gradient()
        if problem.stream is not None and problem.stream.position == 0:
            problem.epoch_callback()

    def _check_frozen(self, error: RuntimeError) -> None:
        """Raise GraphError where autograd failed because somebody froze a parameter during the run."""
        for name, problem in self._problems.items():
            for parameter in problem.theta:
                if not parameter.requires_grad:
                    raise GraphError(
                        f"a parameter of {name}, of shape {tuple(parameter.shape)}, was frozen after the start",
                        where=f"problems.{name}",
                        seen="requires_grad=False",
                        fix="freeze parameters before the run, or set their gradient to zero in grad_callback",
                    ) from error

    def _add_gradient(self, problem: Problem, loss: Tensor, measure: bool, step_count: int) -> None:
        """Direct gradient and hypergradients of one micro-batch, added to `.grad`."""
        count = problem.update_schedule.gradient_accumulation
        scaler = problem.update.scaler
        if count > 1:
            loss = loss / count
        if scaler is not None:
            loss = scaler.scale(loss)
        if not self._adjoint.below(problem.name):
            derivatives.accumulate(loss, problem.theta)
            return
        # estimators see the loss itself: some of them are not linear in it
        share = torch.full((), 1.0 / count, device=loss.device)
        scale = scaler.scale(share) if scaler is not None else share if count > 1 else None
        gradient = self._adjoint.gradient(problem.name, loss, scale, measure=measure)
        if measure:
            self._reporter.measure(problem.name, gradient.telemetry)
        vector = gradient.vector
        if scaler is None and self._skips is None:  # which leave such a step out themselves
            vector = self._guard(problem.name, vector, loss.detach() * count, f"step {step_count + 1}")
        problem.update.add_gradient(vector)
