"""Steps that are left out because their loss or gradient is NaN or infinite: the policy `skip`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mlorun.core.adjoint import Adjoint
from mlorun.core.program.problem import Problem
from mlorun.errors import NonFiniteError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.vectors import Vector


class Skips:
    """Leaves out every step whose loss or gradient is not finite.

    Parameters, optimizer state, buffers, and what estimators keep between calls are then as they were before the step.
    Schedules and streams go on. Nobody waits for the device; on an accelerator, a step counter that the optimizer keeps
    on the host goes on, too.

    most    so many steps of a problem in a row may be left out; more are an error at the next report
    at_once ask whether a step is finite, on the CPU, where asking is free
    counts  by problem, () each: left out since the last report, and in a row until now
    totals  by problem, up to the last report
    """

    def __init__(self, problems: Mapping[str, Problem], adjoint: Adjoint, *, most: int, at_once: bool) -> None:
        self.most = most
        self.at_once = at_once
        self.counts: dict[str, dict[str, Tensor]] = {}
        self.totals: dict[str, int] = {}
        self._problems = problems
        self._adjoint = adjoint
        self._windows: dict[str, Tensor] = {}  # (), whether the open window is finite so far

    @property
    def _buffers(self) -> list[Tensor]:
        return [buffer for problem in self._problems.values() for buffer in problem.module.buffers()]

    def before(self, name: str) -> tuple[Vector, dict[str, Any]]:
        """What the loss and the hypergradient of a problem's next micro-batch may change: a copy of it."""
        return vectors.copy(self._buffers), dict(self._adjoint.carries[name])

    @torch.no_grad()
    def look(self, problem: Problem, loss: Tensor, kept: tuple[Vector, dict[str, Any]]) -> bool | Tensor:
        """Whether the window of `problem` is finite so far, (), or as a bool where it may be asked; if not, put `kept`
        back."""
        name = problem.name
        finite = torch.isfinite(loss.detach()).all()
        gradient = tuple(p.grad for p in problem.theta if p.grad is not None)
        # in fp16 an infinite gradient is the scale's affair, which leaves such a step out itself
        if gradient and problem.update.scaler is None:
            finite = finite & vectors.is_finite(gradient)
        if name in self._windows:
            finite = finite & self._windows[name]
        self._windows[name] = finite
        buffers, carries = kept
        if not self.at_once:
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(torch.where(finite, buffer, before))
            self._adjoint.keep_carries(name, carries, finite)
            return finite
        if not finite:
            for buffer, before in zip(self._buffers, buffers, strict=True):
                buffer.copy_(before)
            self._adjoint.carries[name] = carries
        return bool(finite)

    def close(self, name: str) -> None:
        """The window of a problem is over: count it, if it was left out."""
        finite = self._windows.pop(name)
        left_out = finite.logical_not().long()
        before = self.counts.get(name)
        if before is None:
            self.counts[name] = {"skipped": left_out, "in_a_row": left_out}
        else:
            self.counts[name] = {
                "skipped": before["skipped"] + left_out,
                "in_a_row": (before["in_a_row"] + 1) * left_out,
            }

    def read(self, numbers: Mapping[str, Mapping[str, float]], when: str) -> dict[str, int]:
        """How many steps of each problem were left out, of `counts` as numbers; the count begins anew.

        Raises NonFiniteError where too many in a row were.
        """
        skipped: dict[str, int] = {}
        for name, values in numbers.items():
            if not (count := int(values["skipped"])):
                continue
            skipped[name] = count
            self.totals[name] = self.totals.get(name, 0) + count
            row = int(values["in_a_row"])
            if row > self.most:
                raise NonFiniteError(
                    f"{row} steps of {name} in a row had a loss or a gradient that is not finite, and were left out",
                    where=f"problems.{name}, {when}",
                    seen=f"nonfinite.skips={self.most}",
                    fix=f"a smaller learning rate ({name}.optimizer.lr=...), {name}.gradient_clip=1.0, or "
                    "nonfinite.policy=rewind",
                )
            self.counts[name]["skipped"] = torch.zeros_like(self.counts[name]["skipped"])
        return skipped

    def state_dict(self) -> dict[str, Any]:
        """Counts, totals and open windows, as plain containers, numbers and tensors."""
        return {
            "counts": {name: dict(values) for name, values in self.counts.items()},
            "totals": dict(self.totals),
            "windows": dict(self._windows),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from this."""
        device = next(p.device for problem in self._problems.values() for p in problem.theta)
        self.counts = {
            name: {key: value.to(device) for key, value in values.items()} for name, values in state["counts"].items()
        }
        self.totals = dict(state["totals"])
        self._windows = {name: finite.to(device) for name, finite in state["windows"].items()}
