"""Roll-back: one problem returns to where its inner loop started."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from mlorun.core.program.problem import Problem
from mlorun.hypergradient import vectors


class RollBack:
    """A copy of one problem at the start of its inner loop: parameters, buffers, update, data.

    Random numbers are not wound back: the repeated steps see the same batches and fresh dropout masks.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._copy: dict[str, Any] = {}

    def keep(self) -> None:
        """Remember the present."""
        problem = self._problem
        self._copy = {
            "parameters": vectors.copy(problem.theta),
            "buffers": vectors.copy(tuple(problem.module.buffers())),
            "update": deepcopy(problem.update.state_dict()),
            "stream": problem.stream.state_dict() if problem.stream else None,
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Return to what was kept."""
        problem, copy = self._problem, self._copy
        torch._foreach_copy_(problem.theta, copy["parameters"])
        for buffer, value in zip(problem.module.buffers(), copy["buffers"], strict=True):
            buffer.copy_(value)
        problem.update.load_state_dict({**deepcopy(copy["update"]), "scaler": None})
        if problem.stream is not None:
            problem.stream.load_state_dict(copy["stream"])

    def state_dict(self) -> dict[str, Any]:
        """What is kept; empty before the first inner loop."""
        return self._copy

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Keep this instead, without sharing it."""
        self._copy = deepcopy(dict(state))
