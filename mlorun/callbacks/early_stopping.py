"""Early stopping: end a run whose metric improves no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import isnan
from typing import Any, Literal

from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.errors import ConfigError, did_you_mean


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
        if mode not in ("min", "max"):
            raise ConfigError(f"mode is {mode!r}", where="mode", fix="min or max")
        if patience < 1:
            raise ConfigError("patience must be at least 1", where="patience", seen=f"{patience}")
        if not min_delta >= 0:
            raise ConfigError("min_delta must be at least 0", where="min_delta", seen=f"{min_delta}")
        self.metric = metric
        self.patience = patience
        self.min_delta = min_delta
        self._sign = 1.0 if mode == "min" else -1.0
        self._best: float | None = None
        self._without_improvement = 0

    def on_run_start(self, engine: Engine) -> None:
        sources = {*engine.problems, *(evaluation.prefix for evaluation in engine.evaluations)}
        if self.metric.rpartition("/")[0] not in sources:
            raise self._unknown(sorted(f"{source}/loss" for source in sources))

    def on_report(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        self._look(engine, metrics)

    def on_evaluation(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        self._look(engine, metrics)

    def _look(self, engine: Engine, metrics: Mapping[str, float]) -> None:
        if self.metric not in metrics:
            source = self.metric.rpartition("/")[0]
            if names := [name for name in metrics if name.rpartition("/")[0] == source]:
                raise self._unknown(names)
            return
        value = self._sign * metrics[self.metric]
        if not isnan(value) and (self._best is None or value < self._best - self.min_delta):
            self._best, self._without_improvement = value, 0
            return
        self._without_improvement += 1
        if self._without_improvement >= self.patience:
            best = "a number" if self._best is None else f"{self._sign * self._best:.4g}"
            engine.stop(f"early stopping: {self.metric} no better than {best} for {self.patience} values")

    def _unknown(self, known: Iterable[str]) -> ConfigError:
        return ConfigError(
            f"there is no metric {self.metric!r} to stop early by",
            where="callback.early_stopping.metric",
            fix=did_you_mean(self.metric, known),
        )

    def state_dict(self) -> Mapping[str, Any]:
        return {"best": self._best, "without_improvement": self._without_improvement}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._best, self._without_improvement = state["best"], state["without_improvement"]
