"""One run, new or resumed, from a config to a run folder: check, build, probe, train, result. For shell and Python."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlorun.assemble import build, make_callbacks, make_loggers
from mlorun.callbacks.checkpoints import Checkpoints, When
from mlorun.callbacks.watch import Watch
from mlorun.config.check import check
from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.core.state import on_host
from mlorun.errors import ConfigError
from mlorun.loggers.following import Listeners, following
from mlorun.origin import drift, origin
from mlorun.restart import Restart, load_weights
from mlorun.run import checkpoint, endings, signals
from mlorun.run.device import describe
from mlorun.run.events import Event, Result, RunFacts
from mlorun.run.folder import RunFolder
from mlorun.run.lock import locked
from mlorun.run.log import buffered, log_to

log = logging.getLogger("mlorun.run")


def train(
    config: DictConfig,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train what `config` describes, in `folder`, or in a new one under config.run.root.

    overrides   what the config was composed of, for the record
    callbacks   besides those of the config

    Raises ConfigError before anything is written. From then on every end is a Result, recorded in result.json;
    `Result.error` is what ended it early.
    """
    return _train(config, overrides, folder, callbacks, None)


def go_on(restart: Restart, callbacks: Sequence[Callback] = ()) -> Result:
    """Resume a run from its newest good checkpoint, in its folder. As `train`; raises RunError where none is good."""
    return _train(restart.config, restart.overrides, restart.folder.path, callbacks, restart)


def _train(
    config: DictConfig,
    overrides: Sequence[str],
    folder: Path | None,
    callbacks: Sequence[Callback],
    restart: Restart | None,
) -> Result:
    with buffered() as log_buffer:
        check(config)
        engine = build(config)
        loggers = make_loggers(config)
        callbacks = [*make_callbacks(config), *callbacks]
        broken: BaseException | None = None
        try:
            engine.probe()
            if config.init_from is not None and restart is None:
                load_weights(engine, Path(config.init_from))
        except ConfigError:
            raise
        except (
            Exception,
            SystemExit,
        ) as error:  # the recipe's own: it belongs to the run, and its traceback to the log
            broken = error
        if restart is not None:
            home = restart.folder
        else:
            home = RunFolder.create(config.run.root, config.name) if folder is None else RunFolder.at(folder)
        with locked(home.path), log_to(home.log):
            home.remove_drafts()
            run = Run(config, engine, home, _checkpoints(config, home, callbacks), tuple(callbacks))
            now = origin(config, engine)
            step = 0
            if restart is not None and broken is None:
                step = restart.load(engine, run.checkpoints)
            changes = [] if restart is None else drift(home.facts().get("origin", {}), now)
            home.begin(
                name=config.name,
                config=OmegaConf.to_yaml(config, resolve=True),
                argv=sys.argv,
                overrides=overrides,
                origin=now,
                precision=config.precision,
                step=step,
                drift=changes,
            )
            facts = RunFacts(
                name=config.name,
                folder=home.path,
                total_steps=engine.train_iters,
                device=describe(engine.device),
                overrides=tuple(overrides),
                position=lambda: engine.step_count,
            )
            return run.follow(loggers, facts, broken, log_buffer.flush, changes)


def _checkpoints(config: DictConfig, home: RunFolder, callbacks: Sequence[Callback]) -> Checkpoints:
    wanted = config.checkpoint
    watch = None
    if wanted.metric is not None:
        watch = Watch(wanted.metric, wanted.mode, "checkpoint.metric", "keep the best checkpoint by")
    return Checkpoints(
        home.checkpoints,
        home.metrics,
        When(wanted.every, wanted.seconds, wanted.keep),
        callbacks,
        watch,
        wanted.keep_best,
        home.expect_checkpoints,
    )


@dataclass(frozen=True)
class Run:
    """An engine in its folder, ready to go."""

    config: DictConfig
    engine: Engine
    home: RunFolder
    checkpoints: Checkpoints
    callbacks: tuple[Callback, ...]

    def follow(
        self, loggers: Sequence[Any], facts: RunFacts, broken: BaseException | None, flush: Any, changes: Sequence[str]
    ) -> Result:
        """Train to the end, whatever it is; the result, as it is in result.json."""
        with following(loggers, facts) as listeners:
            flush()
            for change in changes:
                log.warning(
                    "not the same as before: %s. The run goes on, and is not bitwise what it would have been", change
                )
            result = self._result(listeners, broken)
            try:
                self.home.update(hypergradients=self.engine.adjoint.choices(), stop_reason=self.engine.stop_reason)
                self.home.finish(result)
            except OSError as cause:
                result = self._failed(result, cause, "the result was not written")
            listeners.end(result)
        return result

    def _result(self, listeners: Listeners, broken: BaseException | None) -> Result:
        engine, error = self.engine, None
        metrics: dict[str, float] = {}
        first, start = engine.step_count, time.perf_counter()
        with signals.watching(engine.stop, self.checkpoints.request) as received:
            try:
                if broken is not None:
                    raise broken
                metrics = engine.run(listeners.event, [*self.callbacks, self.checkpoints])
                metrics |= self._best(listeners)
            except (KeyboardInterrupt, signals.Terminated):
                engine.stop()  # a second signal: what was saved before is what there is
            except (Exception, SystemExit) as cause:
                error = endings.named(cause, self.home.path, self.home.log)
                log.error("the run failed", exc_info=cause)
            finally:
                self.checkpoints.close()
        wall = time.perf_counter() - start
        if engine.stop_reason is not None:
            log.info(engine.stop_reason)
        status, exit_code = ("finished", 0) if error is None else (endings.status(error), error.exit_code)
        if error is None and engine.interrupted:
            exit_code = received.exit_code
            status = "preempted" if exit_code == signals.PREEMPTED else "interrupted"
            log.info("stopped at step %s; go on with: mlorun resume %s", f"{engine.step_count:,}", self.home.path)
        return Result(
            status=status,  # type: ignore[arg-type]
            exit_code=exit_code,
            steps=engine.step_count,
            metrics=metrics,
            params_sha256=checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}),
            wall_seconds=wall,
            steps_per_second=(engine.step_count - first) / wall if wall > 0 else 0.0,
            error=error,
            stop_reason=engine.stop_reason,
        )

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

    def _failed(self, result: Result, cause: OSError, what: str) -> Result:
        log.error(what, exc_info=cause)
        error = endings.named(cause, self.home.path, self.home.log)
        return replace(result, status=endings.status(error), exit_code=error.exit_code, error=result.error or error)
