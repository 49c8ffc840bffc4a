"""One run from a composed config to a run folder: check, build, probe, train, result. For shell and Python."""

from __future__ import annotations

import errno
import logging
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from mlorun.assemble import build, make_callbacks, make_loggers
from mlorun.config.check import check
from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.errors import ConfigError, MlorunError, NonFiniteError, ResourceError, RunError
from mlorun.run import checkpoint
from mlorun.run.device import describe
from mlorun.run.events import Event, Logger, Result, RunFacts, Status
from mlorun.run.folder import RunFolder
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
    with buffered() as log_buffer:
        check(config)
        engine = build(config)
        loggers = make_loggers(config)
        callbacks = [*make_callbacks(config), *callbacks]
        broken: Exception | None = None
        try:
            engine.probe()
        except ConfigError:
            raise
        except Exception as error:  # the recipe's own: it belongs to the run, and its traceback to the log
            broken = error
        home = RunFolder.create(config.run.root, config.name) if folder is None else RunFolder.at(folder)
        home.begin(
            name=config.name,
            config=OmegaConf.to_yaml(config, resolve=True),
            argv=sys.argv,
            overrides=overrides,
            device=describe(engine.device),
            threads=torch.get_num_threads(),
            precision=config.precision,
        )
        facts = RunFacts(
            name=config.name,
            folder=home.path,
            total_steps=engine.train_iters,
            device=describe(engine.device),
            overrides=tuple(overrides),
            position=lambda: engine.step_count,
        )
        with log_to(home.log), _following(loggers, facts) as end:
            log_buffer.flush()
            result = _run(engine, loggers, callbacks, home, broken)
            home.update(hypergradients=engine.adjoint.choices(), stop_reason=engine.stop_reason)
            home.finish(result)
            end(result)
    return result


def _run(
    engine: Engine,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
    home: RunFolder,
    broken: Exception | None,
) -> Result:
    def emit(event: Event) -> None:
        for logger in loggers:
            logger.event(event)

    error: MlorunError | None = None
    metrics: dict[str, float] = {}
    start = time.perf_counter()
    with _stop_on_signal(engine.stop):
        try:
            if broken is not None:
                raise broken
            metrics = engine.run(emit, callbacks)
        except KeyboardInterrupt:
            engine.stop()
        except Exception as cause:
            error = _named(cause, home)
            log.error("the run failed", exc_info=cause)
        wall = time.perf_counter() - start
        if engine.stop_reason is not None:
            log.info(engine.stop_reason)
        try:
            checkpoint.save(home.checkpoints / "final.pt", engine.state_dict())
        except OSError as cause:
            error = error or _named(cause, home)
            log.error("the checkpoint was not written", exc_info=cause)
    status, exit_code = _status(engine, error)
    return Result(
        status=status,
        exit_code=exit_code,
        steps=engine.step_count,
        metrics=metrics,
        params_sha256=checkpoint.params_sha256({name: p.module for name, p in engine.problems.items()}),
        wall_seconds=wall,
        steps_per_second=engine.step_count / wall if wall > 0 else 0.0,
        error=error,
        stop_reason=engine.stop_reason,
    )


def _status(engine: Engine, error: MlorunError | None) -> tuple[Status, int]:
    if error is None:
        return ("interrupted", 130) if engine.interrupted else ("finished", 0)
    if isinstance(error, NonFiniteError):
        return "nonfinite", error.exit_code
    if isinstance(error, ResourceError):
        return "out_of_disk" if isinstance(error.__cause__, OSError) else "out_of_memory", error.exit_code
    return "failed", error.exit_code


def _named(cause: Exception, home: RunFolder) -> MlorunError:
    """The error that a person is shown for whatever ended a run."""
    if isinstance(cause, MlorunError):
        return cause
    first = next(iter(str(cause).splitlines()), "") or type(cause).__name__
    named: MlorunError
    if isinstance(cause, torch.OutOfMemoryError | MemoryError):
        named = ResourceError("out of memory", seen=first, fix="a smaller batch_size, or precision=bf16")
    elif isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        named = ResourceError("out of disk", where=str(cause.filename or home.path), seen=first, fix="free some space")
    else:
        named = RunError(
            f"{type(cause).__name__}: {first}", where=_place(cause), fix=f"the full traceback is in {home.log}"
        )
    named.__cause__ = cause
    return named


def _place(cause: BaseException) -> str | None:
    """File, line and function of the deepest frame that is not a library's."""
    place = None
    trace = cause.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "site-packages" not in code.co_filename and not code.co_filename.startswith("<"):
            place = f"{code.co_filename}:{trace.tb_lineno} in {code.co_name}"
        trace = trace.tb_next
    return place


@contextmanager
def _following(loggers: Sequence[Logger], facts: RunFacts) -> Iterator[Callable[[Result], None]]:
    """Start every logger; call the function given to end them, or they end without a result."""
    started: list[Logger] = []

    def end(result: Result | None) -> None:
        while started:
            started.pop().end(result)

    try:
        for logger in loggers:
            logger.start(facts)
            started.append(logger)
        yield end
    finally:
        end(None)


@contextmanager
def _stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C ends the run after the step at hand; a second one at once."""

    def handle(number: int, frame: FrameType | None) -> None:
        stop()
        signal.signal(signal.SIGINT, before)

    try:
        before: Any = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread: whoever runs us there has the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
