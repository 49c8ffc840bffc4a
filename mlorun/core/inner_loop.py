"""Where an inner loop started, kept so that `roll_back` can return there."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from mlorun.core.problem import Problem
from mlorun.hypergradient import vectors


class InnerLoop:
    """One problem at the start of its inner loop: parameters, buffers, optimizer, schedule, data, gradient.

    Random numbers are not wound back: the repeated steps see the same batches and fresh dropout masks.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._kept: dict[str, Any] = {}

    def keep(self) -> None:
        """Remember the present."""
        problem = self._problem
        self._kept = {
            "parameters": vectors.copy(problem.theta),
            "buffers": vectors.copy(tuple(problem.module.buffers())),
            "optimizer": deepcopy(problem.optimizer.state_dict()),
            "scheduler": deepcopy(problem.scheduler.state_dict()) if problem.scheduler else None,
            "stream": problem.stream.state_dict() if problem.stream else None,
            "gradients": [None if p.grad is None else p.grad.clone() for p in problem.theta],
        }

    @torch.no_grad()
    def roll_back(self) -> None:
        """Return to what was kept."""
        problem, kept = self._problem, self._kept
        torch._foreach_copy_(problem.theta, kept["parameters"])
        for buffer, value in zip(problem.module.buffers(), kept["buffers"], strict=True):
            buffer.copy_(value)
        problem.optimizer.load_state_dict(kept["optimizer"])
        if problem.scheduler is not None:
            problem.scheduler.load_state_dict(kept["scheduler"])
        if problem.stream is not None:
            problem.stream.load_state_dict(kept["stream"])
        for parameter, gradient in zip(problem.theta, kept["gradients"], strict=True):
            parameter.grad = gradient
