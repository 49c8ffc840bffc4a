"""A metric that decides something: its name, which way is better, and whether it exists."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from mlorun.core.engine import Engine
from mlorun.errors import ConfigError, did_you_mean

log = logging.getLogger("mlorun.run")


@dataclass(frozen=True)
class Watch:
    """One metric.

    metric   of an evaluation ("balanced/loss") or of a report ("classifier/loss")
    mode     whether "min" or "max" is better
    where    the key of the config that names it
    purpose  what it is for: "stop early by"
    """

    metric: str
    mode: Literal["min", "max"]
    where: str
    purpose: str

    def __post_init__(self) -> None:
        if self.mode not in ("min", "max"):
            raise ConfigError(f"mode is {self.mode!r}", where="mode", fix="min or max")

    @property
    def sign(self) -> float:
        """What a value is multiplied by so that smaller is better."""
        return 1.0 if self.mode == "min" else -1.0

    def require(self, engine: Engine) -> None:
        """Raise ConfigError where no problem and no evaluation is called as the metric begins."""
        sources = {*engine.problems, *(evaluation.prefix for evaluation in engine.evaluations)}
        if self.metric.rpartition("/")[0] not in sources:
            raise self._unknown(engine.metric_names or sorted(f"{one}/loss" for one in sources))

    def check(self, engine: Engine) -> None:
        """As `require`, and warn of a test split."""
        self.require(engine)
        source = self.metric.rpartition("/")[0]
        if "test" in source.split("/") and source not in engine.problems:
            log.warning(
                "%s is of the test split: what is chosen by it has seen the data that it is judged by. Choose by a "
                "split for validation",
                self.metric,
            )

    def value(self, metrics: Mapping[str, float]) -> float | None:
        """Its value among these; None where its source is not. Raises ConfigError where only the metric is not."""
        if self.metric in metrics:
            return metrics[self.metric]
        source = self.metric.rpartition("/")[0]
        if names := [name for name in metrics if name.rpartition("/")[0] == source]:
            raise self._unknown(names)
        return None

    def _unknown(self, known: Iterable[str]) -> ConfigError:
        return ConfigError(
            f"there is no metric {self.metric!r} to {self.purpose}",
            where=self.where,
            fix=did_you_mean(self.metric, known),
        )
