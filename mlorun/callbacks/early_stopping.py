"""Early stopping: end a run whose metric improves no more."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from typing import Any, Literal

from mlorun.callbacks.watch import Watch
from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.errors import ConfigError


class EarlyStopping(Callback):
    """Ends the run after `patience` values of `metric` in a row that are no better than the best one.

    metric      of an evaluation ("test/loss") or of a report ("classifier/loss"); choose by a split that is not the
                one you publish
    mode        whether "min" or "max" is better
    patience    how many values without an improvement are allowed
    min_delta   an improvement is larger than this

    A value that is not a number is no improvement. Raises ConfigError before the first step where no problem and no
    evaluation is called as the metric begins, and at its first report or evaluation where that has no such metric.
    """

    def __init__(self, metric: str, mode: Literal["min", "max"], patience: int, min_delta: float) -> None:
        if patience < 1:
            raise ConfigError("patience must be at least 1", where="patience", seen=f"{patience}")
        if not min_delta >= 0:
            raise ConfigError("min_delta must be at least 0", where="min_delta", seen=f"{min_delta}")
        self.watch = Watch(metric, mode, "callback.early_stopping.metric", "stop early by")
        self.patience = patience
        self.min_delta = min_delta
        self._best: float | None = None
        self._without_improvement = 0

    def check(self, engine: Engine) -> None:
        self.watch.require(engine)

    def on_run_start(self, engine: Engine) -> None:
        self.watch.check(engine)

    def on_report(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        self._look(engine, metrics)

    def on_evaluation(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        self._look(engine, metrics)

    def _look(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        value = self.watch.value(metrics)
        if value is None:
            return
        value *= self.watch.sign
        if not isnan(value) and (self._best is None or value < self._best - self.min_delta):
            self._best, self._without_improvement = value, 0
            return
        self._without_improvement += 1
        if self._without_improvement >= self.patience:
            best = "a number" if self._best is None else f"{self.watch.sign * self._best:.4g}"
            engine.stop(f"early stopping: {self.watch.metric} no better than {best} for {self.patience} values")

    def state_dict(self) -> Mapping[str, Any]:
        return {"best": self._best, "without_improvement": self._without_improvement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._without_improvement = state["best"], state["without_improvement"]
