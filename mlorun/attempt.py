"""One attempt at a run in its folder: train to the end, whatever it is, and record it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omegaconf import DictConfig

from mlorun.callbacks.checkpoints import Checkpoints
from mlorun.callbacks.rewinds import Rewinds
from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.core.state import on_host
from mlorun.errors import MlorunError, NonFiniteError
from mlorun.loggers.following import Listeners, following
from mlorun.run import checkpoint, endings
from mlorun.run.events import Event, Logger, Result, RunFacts, Status
from mlorun.run.folder import RunFolder
from mlorun.run.signals import PREEMPTED, Received, Terminated

log = logging.getLogger("mlorun.run")


@dataclass(frozen=True)
class Attempt:
    """An engine in its folder, ready to go.

    received   the signals that have come, which stop the engine
    rewinds    what happens where a number is NaN or infinite
    load       puts the newest good checkpoint into the engine and the callbacks; its step
    """

    config: DictConfig
    engine: Engine
    home: RunFolder
    checkpoints: Checkpoints
    callbacks: tuple[Callback, ...]
    received: Received
    rewinds: Rewinds
    load: Callable[[], int]

    def result(self, loggers: Sequence[Logger], facts: RunFacts, started: Callable[[], None]) -> Result:
        """How it ended, as it is in result.json.

        started   called once the loggers listen; an error that it raises ends the attempt
        """
        with following(loggers, facts) as listeners:
            result = self._trained(listeners, started)
            try:
                self.home.update(
                    hypergradients=self.engine.adjoint.choices(),
                    stop_reason=self.engine.stop_reason,
                    warnings=list(result.warnings),
                )
                self.home.finish(result)
            except OSError as cause:
                log.error("the result was not written", exc_info=cause)
                error = endings.named(cause, self.home.path, self.home.log)
                result = replace(result, status=endings.status(error), exit_code=error.exit_code, error=error)
            listeners.end(result)
        return result

    def _trained(self, listeners: Listeners, started: Callable[[], None]) -> Result:
        engine = self.engine
        error: MlorunError | None = None
        metrics: dict[str, float] = {}
        first, begin = engine.step_count, time.perf_counter()
        try:
            started()
            engine.save_artifacts(listeners.artifacts_in(self.home.artifacts))
            metrics = self._run(listeners)
            metrics |= self._best(listeners)
        except (KeyboardInterrupt, Terminated):
            engine.stop()  # a second signal: what was saved before is what there is
            metrics = engine.newest_metrics
        except (Exception, SystemExit) as cause:
            error = endings.named(cause, self.home.path, self.home.log)
            log.error("the run failed", exc_info=cause)
            if isinstance(cause, NonFiniteError) and self.config.nonfinite.save:
                self._save_broken()
            metrics = engine.newest_metrics
        finally:
            self.checkpoints.close()
        wall = time.perf_counter() - begin
        if engine.stop_reason is not None:
            log.info(engine.stop_reason)
        evaluations = tuple(f"{best}{one.prefix}/" for one in engine.evaluations for best in ("", "best/"))
        status, exit_code = self._end(error)
        if status in ("interrupted", "preempted"):
            log.info("stopped at step %s; go on with: mlorun resume %s", f"{engine.step_count:,}", self.home.path)
        return Result(
            status=status,
            exit_code=exit_code,
            steps=engine.step_count,
            metrics=metrics,
            params_sha256=checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}),
            wall_seconds=wall,
            steps_per_second=(engine.step_count - first) / wall if wall > 0 else 0.0,
            error=error,
            stop_reason=engine.stop_reason,
            metric_steps={name: step for name, step in engine.metric_steps.items() if name in metrics},
            evaluated=tuple(name for name in metrics if name.startswith(evaluations)),
            warnings=tuple(remark for remark in (*engine.remarks.values(), self.rewinds.remark) if remark),
        )

    def _run(self, listeners: Listeners) -> dict[str, float]:
        engine, callbacks = self.engine, [*self.callbacks, self.checkpoints]
        if self.rewinds.most and not checkpoint.saved(self.home.checkpoints):
            self.checkpoints.save(engine)  # somewhere to go back to
        while True:
            try:
                return engine.run(listeners.event, callbacks)
            except NonFiniteError as error:
                self.checkpoints.wait()
                if not self.rewinds.rewind(engine, error, self.load):
                    raise

    def _save_broken(self) -> None:
        try:
            log.info("the broken state is in %s", self.checkpoints.save_broken(self.engine))
        except OSError as error:
            log.error("the broken state was not written", exc_info=error)

    def _end(self, error: MlorunError | None) -> tuple[Status, int]:
        if error is not None:
            return endings.status(error), error.exit_code
        if not self.engine.interrupted:
            return "finished", 0
        code = self.received.exit_code
        return ("preempted" if code == PREEMPTED else "interrupted"), code

    def _best(self, listeners: Listeners) -> dict[str, float]:
        """Every evaluation at the best checkpoint, as best/NAME; nothing where that is the last one, or none is."""
        best, engine = self.checkpoints.best, self.engine
        if best is None or engine.interrupted or not engine.evaluations:
            return {}
        value, step = best
        log.info("best %s: %.6g at step %s", self.config.checkpoint.metric, value, f"{step:,}")
        path = self.checkpoints.path_at(step)
        if path is None or step == engine.step_count:
            return {}

        def emit(event: Event) -> None:
            listeners.event(replace(event, metrics={f"best/{name}": number for name, number in event.metrics.items()}))

        last = on_host(engine.state_dict())
        engine.load_state_dict(checkpoint.load(path)["engine"])
        metrics = engine.evaluate(emit)
        engine.load_state_dict(last)
        return {f"best/{name}": number for name, number in metrics.items()}
