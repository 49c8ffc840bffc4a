"""Reports: the newest metrics of every problem, and what was measured of hypergradients, in one wait for the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from mlorun.core.nonfinite import Guard, broken_loss
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Metric, metrics_of
from mlorun.core.skips import Skips
from mlorun.hypergradient.sweep import Telemetry
from mlorun.run.events import Event

log = logging.getLogger("mlorun.core")

Emit = Callable[[Event], None]

# norm(H x - v) / norm(v) above which a solve did harm; 1 is that of x = 0
WORST = 1.01


class Reporter:
    """Holds what a report will say, on the device, until one is due.

    guard    whose flags are read in the same wait
    skips    whose counts are, where steps may be left out
    remarks  what a person must know of the run that is no metric: sentences, by what they are about
    """

    def __init__(self, graph: ProblemGraph, guard: Guard, skips: Skips | None = None) -> None:
        self.guard = guard
        self.skips = skips
        self.remarks: dict[str, str] = {}
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
        newest = {name: self._metrics(name) for name in self._graph.names if name in self._newest}
        if not newest:
            return {}
        flags = self.guard.flags
        counts = {} if self.skips is None else self.skips.counts
        metrics, measured, raised, skipped = _numbers(newest, self._measured, {"": flags}, counts)
        when = f"between steps {max(0, step - log_every)} and {step} (engine.log_every=1 finds which)"
        self._count_skips(skipped, metrics, step, when)
        self._look_at_solves(measured, step)
        for name, values in metrics.items():
            emit(Event(step, "train", name, values))
        for name, values in measured.items():
            emit(Event(step, "hypergradient", name, values))
        self._measured = {}
        # lowers first: a broken one soon breaks those above it
        for name in (name for name in self._graph.order if name in metrics and self.skips is None):
            if not isfinite(loss := metrics[name]["loss"]):
                raise broken_loss(name, loss, when)
        for name, flag in raised.get("", {}).items():
            if flag:
                raise self.guard.error(name, metrics[name]["loss"], when)
        flags.clear()
        return {f"{name}/{key}": number for name, values in metrics.items() for key, number in values.items()}

    def _metrics(self, name: str) -> dict[str, Tensor]:
        return metrics_of(self._newest[name], f"the training_step of {name}")

    def _count_skips(
        self, counts: Mapping[str, Mapping[str, float]], metrics: dict[str, dict[str, float]], step: int, when: str
    ) -> None:
        if self.skips is None:
            return
        for name, count in self.skips.read(counts, when).items():
            metrics[name]["skipped"] = float(count)
            log.warning("%s: %s steps left out by step %s: loss or gradient not finite", name, count, f"{step:,}")
            total = self.skips.totals[name]
            self.remarks[f"skips of {name}"] = f"{name}: {total} steps left out, whose loss or gradient was not finite"

    def _look_at_solves(self, measured: Mapping[str, Mapping[str, float]], step: int) -> None:
        """Say once, of each edge, that its solve is no nearer to the solution than zero is."""
        for upper, values in measured.items():
            for key, residual in values.items():
                low, _, what = key.rpartition("/")
                edge = f"{upper} <- {low}"
                if what != "residual" or edge in self.remarks or not (residual > WORST or residual == 1.0):
                    continue
                self.remarks[edge] = (
                    f"{edge}: at step {step:,} the solve of H x = v has a residual of {residual:.3g} v, and x = 0 has "
                    f"1 v: its hypergradient is not to be trusted. Try {low}.hypergradient=minres, more iterations, "
                    "or more damping"
                )
                log.warning(self.remarks[edge])

    def state_dict(self) -> dict[str, Any]:
        """What the next report would say; metrics that are functions are computed now."""
        return {
            "newest": {name: self._metrics(name) for name in self._newest},
            "measured": {name: dict(telemetry) for name, telemetry in self._measured.items()},
            "flags": dict(self.guard.flags),
            "skips": None if self.skips is None else self.skips.state_dict(),
            "remarks": dict(self.remarks),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from this."""
        self._newest = dict(state["newest"])
        self._measured = {name: dict(telemetry) for name, telemetry in state["measured"].items()}
        self.guard.flags = dict(state["flags"])
        self.remarks = dict(state["remarks"])
        if self.skips is not None:
            self.skips.load_state_dict(state["skips"] or {"counts": {}, "totals": {}, "windows": {}})


def _numbers(*groups: Mapping[str, Mapping[str, Tensor]]) -> list[dict[str, dict[str, float]]]:
    """Each () tensor of two-level mappings as a number, all of them in one wait for the device."""
    tensors = [value for group in groups for values in group.values() for value in values.values()]
    # a recipe may give plain numbers, which are on the host
    device = next((value.device for value in tensors if value.device.type != "cpu"), None)
    numbers = iter(torch.stack([value.to(device).float().reshape(()) for value in tensors]).tolist())
    return [
        {name: {key: next(numbers) for key in values} for name, values in group.items() if values} for group in groups
    ]
