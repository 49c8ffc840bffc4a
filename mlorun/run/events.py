"""What a run tells its listeners: facts at the start, events on the way, a result at the end. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

# "hypergradient": norms and solver figures about the last gradient of an upper problem; for files, not for the eye
Kind = Literal["train", "eval", "hypergradient"]
Status = Literal["finished", "failed", "nonfinite", "out_of_memory", "out_of_disk", "interrupted", "preempted"]


@dataclass(frozen=True)
class Event:
    """Numbers of one problem after `step` global steps; plain floats, already off the device."""

    step: int
    kind: Kind
    source: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RunFacts:
    """What is known before the first step. `position()`, for any thread, is the step the engine is at."""

    name: str
    folder: Path
    total_steps: int
    device: str
    overrides: tuple[str, ...]
    position: Callable[[], int]


@dataclass(frozen=True)
class Result:
    """How a run ended. `error` is what ended it early, for whoever reports it; result.json leaves it out.

    stop_reason   why it is complete before its last step, e.g. early stopping; None where it is not
    metric_steps  at which step each metric was; one that is missing is of the last
    warnings      what a person must know of it that is no metric, in sentences
    evaluated     the metrics that are of evaluations, by their names; the others are of training
    """

    status: Status
    exit_code: int
    steps: int
    metrics: Mapping[str, float]
    params_sha256: str
    wall_seconds: float
    steps_per_second: float
    error: BaseException | None = field(default=None, compare=False)
    stop_reason: str | None = None
    warnings: tuple[str, ...] = ()
    metric_steps: Mapping[str, int] = field(default_factory=dict)
    evaluated: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The fields of result.json, in its order."""
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "steps": self.steps,
            "metrics": dict(self.metrics),
            "params_sha256": self.params_sha256,
            "wall_seconds": self.wall_seconds,
            "steps_per_second": self.steps_per_second,
            "warnings": list(self.warnings),
            "metric_steps": dict(self.metric_steps),
            "evaluated": list(self.evaluated),
        }


@runtime_checkable
class Logger(Protocol):
    """Hears of a run. `end` is called exactly once after `start`, with None where the run has no result.

    One that also has `artifact(step, name, value, path)` hears of every artifact, once it is written. A logger that
    raises is named in the log and left out; the run goes on.
    """

    def start(self, facts: RunFacts) -> None:
        """Called once, before the first step."""

    def event(self, event: Event) -> None:
        """Called from the training thread; must not wait for anything slow."""

    def end(self, result: Result | None) -> None:
        """Called once, whatever happened."""
