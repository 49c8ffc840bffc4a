"""One run, new or resumed, from a config to a run folder: check, build, probe, train, result. For shell and Python."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mlorun.assemble import build, make_callbacks, make_loggers
from mlorun.attempt import Attempt
from mlorun.callbacks.checkpoints import Checkpoints, When
from mlorun.callbacks.rewinds import Rewinds
from mlorun.callbacks.watch import Watch
from mlorun.config.check import check
from mlorun.config.masked import masked_config
from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.errors import ConfigError
from mlorun.origin import drift, origin
from mlorun.restart import Restart
from mlorun.run import endings, signals
from mlorun.run.device import describe
from mlorun.run.events import Logger, Result, RunFacts
from mlorun.run.folder import RunFolder
from mlorun.run.lock import locked
from mlorun.run.log import buffered, log_to
from mlorun.run.secrets import masked
from mlorun.weights import load_weights

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
        try:
            engine = build(config)
            loggers = make_loggers(config)
            callbacks = [*make_callbacks(config), *callbacks]
        except Exception as error:
            if endings.is_out_of_memory(error):
                raise
            raise endings.of_config(error) from error.__cause__
        broken: list[BaseException] = []
        try:
            engine.probe()
            require_callbacks(config, engine, callbacks)
            if config.init_from is not None and restart is None:
                load_weights(engine, config.init_from)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            broken.append(error)  # the recipe's own: it belongs to the run, and its traceback to the log

        def started() -> None:
            log_buffer.flush()
            for error in broken:
                raise error

        if restart is not None:
            home = restart.folder
        else:
            home = RunFolder.create(config.run.root, config.name) if folder is None else RunFolder.at(folder)
        try:
            with locked(home.path), log_to(home.log):
                return _attempted(config, overrides, home, engine, tuple(callbacks), loggers, restart, started)
        except OSError as cause:
            if endings.is_out_of_disk(cause):  # before there was an attempt that could record it
                raise endings.named(cause, home.path, home.log) from cause
            raise


def _attempted(
    config: DictConfig,
    overrides: Sequence[str],
    home: RunFolder,
    engine: Engine,
    callbacks: tuple[Callback, ...],
    loggers: Sequence[Logger],
    restart: Restart | None,
    started: Callable[[], None],
) -> Result:
    home.remove_drafts()
    policy = config.nonfinite
    rewinds = Rewinds(policy.rewinds if policy.policy == "rewind" else 0, policy.factor)
    callbacks = (rewinds, *callbacks)
    checkpoints = _checkpoints(config, home, callbacks)
    overrides = tuple(map(masked, overrides))
    step = 0 if restart is None else restart.load(engine, checkpoints)
    newest = restart or Restart(home, config, overrides)
    now = origin(config, engine)
    changes = [] if restart is None else drift(home.facts().get("origin", {}), now)
    if restart is not None and home.is_config_edited:
        changes.append("config.yaml: edited since it was written")
    for change in changes:
        log.warning("not as before: %s. The run goes on, and is not bitwise what it would have been", change)
    with signals.watching(engine.stop, checkpoints.request) as received:
        home.begin(
            name=config.name,
            config=OmegaConf.to_yaml(masked_config(config)),
            argv=[masked(word) for word in sys.argv],
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
            overrides=overrides,
            position=lambda: engine.step_count,
        )
        load = partial(newest.load, engine, checkpoints)
        attempt = Attempt(config, engine, home, checkpoints, callbacks, received, rewinds, load)
        return attempt.result(loggers, facts, started)


def require_callbacks(config: DictConfig, engine: Engine, callbacks: Sequence[Callback]) -> None:
    """Raise ConfigError where the program lacks what a callback, or checkpoint.metric, needs. After a probe."""
    watch = _watch(config)
    if watch is not None:
        watch.require(engine)
    for callback in callbacks:
        callback.check(engine)


def _watch(config: DictConfig) -> Watch | None:
    wanted = config.checkpoint
    if wanted.metric is None:
        return None
    return Watch(wanted.metric, wanted.mode, "checkpoint.metric", "keep the best checkpoint by")


def _checkpoints(config: DictConfig, home: RunFolder, callbacks: Sequence[Callback]) -> Checkpoints:
    wanted = config.checkpoint
    return Checkpoints(
        home.checkpoints,
        home.metrics,
        When(wanted.every, wanted.seconds, wanted.keep),
        callbacks,
        _watch(config),
        wanted.keep_best,
        home.expect_checkpoints,
    )
