"""Checkpoints of a run: when one is due, which are kept, and that nobody waits for the disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from mlorun.callbacks.watch import Watch
from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.core.state import broken_tensors, on_host
from mlorun.errors import ConfigError, NonFiniteError
from mlorun.run import checkpoint
from mlorun.run.atomic import point, sync
from mlorun.run.checkpoint import CheckpointError

log = logging.getLogger("mlorun.run")

FORMAT = 3
FINAL, BEST = "final.pt", "best.pt"
BROKEN = "nonfinite"  # a folder for states that hold NaN or infinity


@dataclass(frozen=True)
class When:
    """When a checkpoint is saved, and which stay.

    every     after every so many global steps; 0 is never
    seconds   after every so many seconds; 0 is never
    keep      the newest that stay
    """

    every: int
    seconds: float
    keep: int


class Checkpoints(Callback):
    """Saves what the future of a run depends on in `folder`: the copy is made at once, and written beside the training.

    metrics   metrics.jsonl, whose length a checkpoint holds, so that a resumed run goes on right there
    others    the run's other callbacks, whose states a checkpoint holds
    best      the metric whose best values have their checkpoints kept, and how many; None keeps the newest alone
    on_first  called once the first one is there

    `save` and the hooks raise OSError where a checkpoint cannot be written, at the latest at the next save; and
    NonFiniteError where a parameter or an optimizer's state is NaN or infinite: such a state is never saved.
    """

    def __init__(
        self,
        folder: Path,
        metrics: Path,
        when: When,
        others: Sequence[Callback] = (),
        best: Watch | None = None,
        keep_best: int = 1,
        on_first: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._metrics = metrics
        self._when = when
        self._others = tuple(others)
        self._watch = best
        self._keep_best = keep_best
        self._on_first = on_first
        self._clock = clock
        self._saved_at = clock()
        self._requested = False
        self._best: list[tuple[float, int]] = []  # value and step, best first
        self._improved = False
        self._first_is_saved = False
        self._steps: list[int] = []  # of the checkpoints that this process has saved or come from
        self._writer: ThreadPoolExecutor | None = None
        self._pending: Future[Path] | None = None

    def request(self) -> None:
        """Save after the step at hand; safe to call from a signal handler."""
        self._requested = True

    @property
    def best(self) -> tuple[float, int] | None:
        """The best value of the watched metric, and its step."""
        return self._best[0] if self._best else None

    def on_run_start(self, engine: Engine) -> None:
        if self._watch is not None:
            self._watch.check(engine)

    def on_report(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        self._look(engine, metrics)

    def on_evaluation(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        self._look(engine, metrics)

    def _look(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        if self._watch is None or (value := self._watch.value(metrics)) is None or not isfinite(value):
            return
        sign = self._watch.sign
        better = sorted((sign * number, step) for number, step in [*self._best, (value, engine.step_count)])
        self._best = [(sign * number, step) for number, step in better[: self._keep_best]]
        self._improved = self._improved or (value, engine.step_count) in self._best

    def on_step_complete(self, engine: Engine) -> None:
        when, step = self._when, engine.step_count
        due = when.every and step % when.every == 0
        overdue = when.seconds and self._clock() - self._saved_at >= when.seconds
        if due or overdue or self._requested or self._improved:
            self.save(engine)

    def on_run_end(self, engine: Engine) -> None:
        """Save the last state, and wait for the disk."""
        self.save(engine)
        self.wait()
        for name, step in ((FINAL, None if engine.interrupted else engine.step_count), (BEST, self._best_step())):
            if step is not None and (path := self.path_at(step)) is not None:
                point(self._folder / name, path.name)

    def _best_step(self) -> int | None:
        return self._best[0][1] if self._best else None

    def path_at(self, step: int) -> Path | None:
        """The checkpoint of this step, if there is one."""
        return next((path for path in checkpoint.saved(self._folder) if checkpoint.step_of(path) == step), None)

    def save(self, engine: Engine) -> None:
        """Copy the state now, and write it beside the training."""
        self.wait()
        if broken := _broken(engine):
            name, _, what = broken[0].partition("/")
            raise NonFiniteError(
                f"the state of {name} is not finite: it is not saved",
                where=f"problems.{name}, step {engine.step_count}",
                seen=what,
                fix="engine.log_every=1 finds the step; a smaller learning rate or a gradient_clip",
            )
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._requested = self._improved = False
        self._saved_at = self._clock()
        step, content = engine.step_count, self._content(engine)
        self._steps = [*(s for s in self._steps if s != step), step]
        self._pending = self._writer.submit(self._write, step, content, self._kept())

    def _content(self, engine: Engine) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "engine": on_host(engine.state_dict()),
            "callbacks": [dict(other.state_dict()) for other in self._others],
            "best": [list(one) for one in self._best],
            "metrics_bytes": self._metrics.stat().st_size if self._metrics.exists() else 0,
        }

    def save_broken(self, engine: Engine) -> Path:
        """Write the present state, whatever is in it, where no run goes on from it; its path. Its entry "nonfinite"
        lists what is NaN or infinite."""
        content = {**self._content(engine), "nonfinite": _broken(engine)}
        return checkpoint.save(self._folder / BROKEN, engine.step_count, content)

    def _kept(self) -> frozenset[int]:
        return frozenset(self._steps[-self._when.keep :]) | {step for _, step in self._best}

    def _write(self, step: int, content: dict[str, Any], kept: frozenset[int]) -> Path:
        if self._metrics.exists():
            sync(self._metrics)
        path = checkpoint.save(self._folder, step, content)
        if not self._first_is_saved:
            self._first_is_saved = True
            self._on_first()
        for other in checkpoint.saved(self._folder):
            at = checkpoint.step_of(other)
            # those of later steps come from a run that was resumed from an earlier one
            if other != path and (at == step or (at < step and at not in kept)):
                other.unlink(missing_ok=True)
        return path

    def wait(self) -> None:
        """Until the last checkpoint is written. Raises what went wrong with it."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the writer; what goes wrong now is only logged."""
        try:
            self.wait()
        except Exception as error:
            log.error("the last checkpoint was not written", exc_info=error)
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def restore(self, content: Mapping[str, Any], step: int) -> None:
        """Go on from what was saved, the other callbacks too. Raises ConfigError where they are others than then."""
        if len(content["callbacks"]) != len(self._others):
            raise ConfigError(
                "the run had other callbacks",
                where="callback",
                seen=f"{len(self._others)} now, {len(content['callbacks'])} in the checkpoint",
            )
        for other, state in zip(self._others, content["callbacks"], strict=True):
            other.load_state_dict(state)
        self._best = [(value, at) for value, at in content["best"]][: self._keep_best]
        self._steps = sorted({s for path in checkpoint.saved(self._folder) if (s := checkpoint.step_of(path)) <= step})


def require_ours(content: Mapping[str, Any], path: Path) -> None:
    """Raise CheckpointError for the content of a checkpoint that this version of mlorun has not written."""
    if content.get("format") != FORMAT:
        raise CheckpointError(
            "another version of mlorun has written this checkpoint",
            where=str(path),
            seen=f"format {content.get('format')}, wanted {FORMAT}",
            fix="go on with that version; or begin a new run with its weights: init_from",
        )
    if missing := {"engine", "callbacks", "best", "metrics_bytes"} - set(content):
        raise CheckpointError("a checkpoint lacks parts", where=str(path), seen=f"no {', '.join(sorted(missing))}")


def _broken(engine: Engine) -> list[str]:
    return broken_tensors({name: _trained(problem) for name, problem in engine.problems.items()})


def _trained(problem: Problem) -> dict[str, Any]:
    """What has to be finite: parameters and the optimizer's state; a buffer may well be infinite."""
    return {"parameters": problem.theta, "optimizer": problem.optimizer.state_dict()["state"]}
