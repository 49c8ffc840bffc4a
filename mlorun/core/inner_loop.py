"""How an inner loop starts: from what upper problems decide; and what `roll_back` returns to."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from mlorun.core.problem import Problem
from mlorun.errors import ConfigError, did_you_mean
from mlorun.hypergradient import vectors
from mlorun.hypergradient.updates import update_of


@torch.no_grad()
def begin(problem: Problem) -> None:
    """Take the start and the optimizer's options from the upper problems that decide them, if any do.

    A start that is given makes the optimizer forget its state. Reading options waits for the device, once a loop.
    """
    start = problem.initial_parameters()
    if start is not None:
        start = tuple(start)
        if [t.shape for t in start] != [p.shape for p in problem.theta]:
            raise ConfigError(
                f"{type(problem).__name__}.initial_parameters does not fit {problem.name}'s parameters",
                where=f"problems.{problem.name}",
                seen=f"{len(start)} tensors of shapes {[tuple(t.shape) for t in start][:4]}",
                fix=f"one for each of {len(problem.theta)} parameters, in order, "
                f"shapes {[tuple(p.shape) for p in problem.theta][:4]}",
            )
        torch._foreach_copy_(problem.theta, start)
        problem.optimizer.state.clear()
    for key, value in learned_options(problem).items():
        for group in problem.optimizer.param_groups:
            group[key] = float(value)


def learned_options(problem: Problem) -> dict[str, Tensor]:
    """What `optimizer_options` gives, each () and one that the optimizer's step can be differentiated in."""
    learned = dict(problem.optimizer_options())
    if not learned:
        return {}
    known = update_of(problem.optimizer).learnable
    for key, value in learned.items():
        where = f"{type(problem).__name__}.optimizer_options"
        if key not in known:
            kind = type(problem.optimizer).__name__
            raise ConfigError(f"{key!r} of {kind} cannot be learned", where=where, fix=did_you_mean(key, known))
        if not isinstance(value, Tensor) or value.numel() != 1:
            seen = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"{key!r} must be a tensor of one number", where=where, seen=seen)
        learned[key] = value.reshape(())
    if "lr" in learned and problem.scheduler is not None:
        raise ConfigError(
            f"the learning rate of {problem.name} is both learned and scheduled",
            where=f"problems.{problem.name}.scheduler",
            fix=f"{problem.name}.scheduler=none",
        )
    return learned


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
