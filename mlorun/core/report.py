"""Reports: the newest metrics of every problem, and what was measured of hypergradients, in one wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from mlorun.core.nonfinite import Guard, broken_loss
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Metric, metrics_of
from mlorun.hypergradient.sweep import Telemetry
from mlorun.run.events import Event

Emit = Callable[[Event], None]


class Reporter:
    """Holds what a report will say, on the device, until one is due.

    guard   whose flags are read in the same wait
    """

    def __init__(self, graph: ProblemGraph, guard: Guard) -> None:
        self.guard = guard
        self._graph = graph
        self._newest: dict[str, Tensor | Mapping[str, Metric]] = {}
        self._measured: dict[str, Telemetry] = {}

    def see(self, name: str, result: Tensor | Mapping[str, Metric]) -> None:
        """What the newest step of a problem returned."""
        self._newest[name] = result

    def measure(self, name: str, telemetry: Telemetry) -> None:
        """What was measured of the newest gradient of a problem."""
        self._measured.setdefault(name, {}).update(telemetry)

    def report(self, step: int, emit: Emit, log_every: int) -> dict[str, float]:
        """Emit one event a problem, and one for each measured gradient; {"classifier/loss": 0.3, ...}.

        Raises NonFiniteError where a loss, or a gradient since the last report, is not finite.
        """
        newest = {name: metrics_of(self._newest[name]) for name in self._graph.names if name in self._newest}
        if not newest:
            return {}
        flags = self.guard.flags
        metrics, measured, raised = _numbers(newest, self._measured, {"": flags})
        for name, values in metrics.items():
            emit(Event(step, "train", name, values))
        for name, values in measured.items():
            emit(Event(step, "hypergradient", name, values))
        self._measured = {}
        # lowers first: a broken one soon breaks those above it
        when = f"between steps {max(0, step - log_every)} and {step} (engine.log_every=1 finds which)"
        for name in (name for name in self._graph.order if name in metrics):
            if not isfinite(loss := metrics[name]["loss"]):
                raise broken_loss(name, loss, when)
        for name, flag in raised.get("", {}).items():
            if flag:
                raise self.guard.error(name, metrics[name]["loss"], when)
        flags.clear()
        return {f"{name}/{key}": number for name, values in metrics.items() for key, number in values.items()}

    def state_dict(self) -> dict[str, Any]:
        """What the next report would say; metrics that are functions are computed now."""
        return {
            "newest": {name: metrics_of(result) for name, result in self._newest.items()},
            "measured": {name: dict(telemetry) for name, telemetry in self._measured.items()},
            "flags": dict(self.guard.flags),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from this."""
        self._newest = dict(state["newest"])
        self._measured = {name: dict(telemetry) for name, telemetry in state["measured"].items()}
        self.guard.flags = dict(state["flags"])


def _numbers(*groups: Mapping[str, Mapping[str, Tensor]]) -> list[dict[str, dict[str, float]]]:
    """Each () tensor of two-level mappings as a number, all of them in one wait for the device."""
    tensors = [value for group in groups for values in group.values() for value in values.values()]
    numbers = iter(torch.stack([value.float().reshape(()) for value in tensors]).tolist())
    return [
        {name: {key: next(numbers) for key in values} for name, values in group.items() if values} for group in groups
    ]
