"""Can a loss be evaluated again, with other tensors in place of parameters? Hypergradients do nothing else."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mlorun.core.edges import reads
from mlorun.core.program.problem import Problem
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.data.batches import map_tensors
from mlorun.errors import GraphError
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.inner_loop import Values

log = logging.getLogger("mlorun.core")

REPEATS_TO = 1e-3  # relative; kernels of accelerators do not give the same bits twice


def batch_versions(batch: Any) -> tuple[int, ...]:
    """How often each tensor of a batch was written in place."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, batch)
    return vectors.versions(tensors)


def require_batch_unwritten(problem: Problem, batch: Any, before: Sequence[int]) -> None:
    """Raise GraphError where the loss has written into its batch; `before`: its `batch_versions` before the loss."""
    if batch_versions(batch) != tuple(before):
        raise GraphError(
            f"the loss of {problem.name} changes its batch in place, and an estimator that evaluates it again "
            "on that batch would see another one",
            where=f"{type(problem).__name__}.training_step",
            seen="an operation such as x.mul_(...) or x[...] = ...",
            fix="write x = x * ...",
        )


def warn_unless_it_repeats(program: FunctionalProgram, problem: Problem, batch: Any) -> None:
    """A hypergradient evaluates a lower loss again: it must be a function of what is replayed."""
    snapshot = (program.snapshot(batch, None),)
    first, second = (float(program.loss(problem.name, snapshot, {}).detach()) for _ in range(2))
    if abs(first - second) > REPEATS_TO * abs(first):
        log.warning(
            f"the loss of {problem.name} is {first:g}, and {second:g} when it is evaluated again on the same batch, "
            "parameters and random state: its hypergradient will be off. Draw from torch's own generators, keep "
            "running numbers in buffers, and change no batch in place."
        )


def require_replays(program: FunctionalProgram, problem: Problem, batch: Any) -> None:
    """A hypergradient puts other tensors in place of parameters: the loss must read them where they are put."""
    values = {name: vectors.leaves(program.theta(name)) for name in program.problems}
    flat = tuple(t for vector in values.values() for t in vector)
    versions = vectors.versions(flat)
    loss = program.loss(problem.name, (program.snapshot(batch, None),), values)
    if vectors.versions(flat) != versions:
        raise GraphError(
            f"the loss of {problem.name} writes parameters in place, so that evaluating it again changes them",
            where=f"{type(problem).__name__}.training_step",
            seen="e.g. nn.Embedding with max_norm",
            fix="leave that out of the loss, e.g. into param_callback",
        )
    with program.substituted(values):
        start = problem.checked_start()
        others = {
            "initial_parameters": tuple(start or ()),
            "optimizer_options": tuple(problem.learned_options().values()),
        }
    for function, results in {"training_step": (loss,), **others}.items():
        for name, other in program.problems.items():
            if any(reads(result, other) for result in results):
                raise GraphError(
                    f"{type(problem).__name__}.{function} reads parameters of {name} that were kept elsewhere, and a "
                    "hypergradient, which puts other values in their place, does not reach them there",
                    where=f"problems.{problem.name}",
                    seen="an attribute, a list or a closure with parameters in it",
                    fix=f"read them anew in {function}, from the module: self.module.weight, self.module.parameters()",
                )
    _require_kinds(problem, loss, values)


def _require_kinds(problem: Problem, loss: Tensor, values: Values) -> None:
    """A hypergradient is made of real, dense vectors."""
    for name, theta in values.items():
        if any(t.is_complex() for t in theta):
            raise GraphError(
                f"{name} has complex parameters, which hypergradients do not know",
                where=f"problems.{name}.module",
                fix="keep real and imaginary parts in one real parameter, and read it by torch.view_as_complex",
            )
    flat = tuple(t for theta in values.values() for t in theta)
    if any(g is not None and g.layout != torch.strided for g in derivatives.partial_gradients(loss, flat)):
        raise GraphError(
            f"the loss of {problem.name} has sparse gradients, which hypergradients do not know",
            where=f"problems.{problem.name}",
            seen="an embedding with sparse=True",
            fix="sparse=False",
        )
