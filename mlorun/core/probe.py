"""Before anything runs: every loss is a scalar, every declared edge is read, and every estimator fits its problem."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlorun.core.constants import statistics_read
from mlorun.core.edges import require_edges
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Metric, Problem, loss_of, metrics_of
from mlorun.core.program.update import L2
from mlorun.core.reevaluation import (
    batch_versions,
    require_batch_unwritten,
    require_replays,
    warn_unless_it_repeats,
)
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.core.replay.recompute import reentrant_calls
from mlorun.data.batches import packed
from mlorun.errors import ConfigError, GraphError
from mlorun.hypergradient.draws import taped
from mlorun.hypergradient.estimator import Needs
from mlorun.run.checkpoint import why_not_held

log = logging.getLogger("mlorun.core")


@dataclass(frozen=True)
class Probed:
    """What a probe learned: whether some loss draws from Python's or NumPy's generators, and the names of metrics."""

    draws_on_host: bool
    metrics: tuple[str, ...]


def probe(program: FunctionalProgram, graph: ProblemGraph) -> Probed:
    """Evaluate each loss once on its next batch and leave no trace. Raises GraphError or ConfigError.

    A hypergradient through an edge that no loss reads is zero, in silence: the commonest mistake in the field.
    """
    states = {name: p.stream.state_dict() for name, p in program.problems.items() if p.stream is not None}
    for name in sorted(graph.differentiated):
        _check_size(program, graph, name)
        _check_nested(program, graph, name)
        _check_optimum(program.problems[name])
    for name, problem in program.problems.items():
        if problem.hypergradient is not None and name not in graph.differentiated:
            log.warning(
                f"problems.{name}.hypergradient is not used: nobody differentiates through {name}. A hypergradient "
                "belongs to the lower problem."
            )
    before = _host_rng()
    known = {name: dict(problem.module.named_parameters()) for name, problem in program.problems.items()}
    drew = False
    metrics: list[str] = []
    with program.replay():
        for problem in program.problems.values():
            evaluated_again = problem.name in graph.differentiated or bool(graph.lowers[problem.name])
            batch = problem.get_batch()
            written = batch_versions(batch)
            with taped() as draws, statistics_read(program.problems) as statistics:
                loss, result = _loss(program, problem, batch)
            for low in sorted(statistics & set(graph.nodes_on_paths(problem.name))):
                log.warning(
                    f"the loss of {problem.name} reads running statistics of {low}'s BatchNorm layers, which are "
                    f"constants to its hypergradient: it leaves out how {low}'s steps move them. In it: batch "
                    f"statistics ({low}.module in training mode), GroupNorm, LayerNorm"
                )
            _check_state(problem)
            if problem.makes_batches and problem.name in graph.differentiated:
                _check_held(problem, "get_batch", packed(batch))
            if not torch.isfinite(loss.detach()).all():
                log.warning(
                    "the loss of %s is %s on its first batch, before any step: see its data and its loss",
                    problem.name,
                    float(loss.detach()),
                )
            if evaluated_again:
                require_batch_unwritten(problem, batch, written)
            metrics += [f"{problem.name}/{key}" for key in _metrics(problem, result)]
            if problem.name in graph.differentiated:
                warn_unless_it_repeats(program, problem, batch)
            if evaluated_again:
                require_replays(program, problem, batch)
            require_edges(program, graph, problem, loss, draws)
            drew = drew or _host_rng() != before
    for name, problem in program.problems.items():
        _check_none_made(name, problem, known[name])
    for name, state in states.items():
        stream = program.problems[name].stream
        assert stream is not None
        stream.load_state_dict(state)
    return Probed(drew, tuple(metrics))


def _check_none_made(name: str, problem: Problem, known: Mapping[str, Tensor]) -> None:
    made = [key for key, _ in problem.module.named_parameters() if key not in known]
    if made:
        raise ConfigError(
            f"the module of {name} made parameters when it was called, and nobody trains them",
            where=f"problems.{name}.module",
            seen=f"{', '.join(made[:4])} of {type(problem.module).__name__}",
            fix="make them in __init__",
        )


def _check_size(program: FunctionalProgram, graph: ProblemGraph, name: str) -> None:
    estimate = program.problems[name].hypergradient
    if estimate is not None:
        sizes = {other: sum(t.numel() for t in program.theta(other)) for other in (name, *graph.read_by(name))}
        theta = sizes.pop(name)
        estimate.require_size(name, theta, sum(sizes.values()))


def _check_nested(program: FunctionalProgram, graph: ProblemGraph, name: str) -> None:
    """Raise GraphError where an estimator cannot differentiate through a problem that steers others."""
    estimate, below = program.problems[name].hypergradient, graph.nodes_on_paths(name)
    if estimate is None or not below:
        return
    if estimate.needs.nested is None:
        raise GraphError(
            f"{name} steers {', '.join(below)} and is differentiated through itself: this hypergradient would take "
            f"{name}'s own hypergradient for a constant",
            where=f"problems.{name}.hypergradient",
            seen=type(estimate).__name__,
            fix=f"{name}.hypergradient=cg, or another implicit one: they differentiate the total loss",
        )
    for low in below:
        answer = program.problems[low].hypergradient
        if estimate.needs.nested != "own_loss" and answer is not None and answer.needs.answers is None:
            raise GraphError(
                f"{name} steers {low} and is differentiated through itself, which needs solves with {low}'s Hessian: "
                f"this hypergradient of {low} has none",
                where=f"problems.{low}.hypergradient",
                seen=type(answer).__name__,
                fix=f"{low}.hypergradient=cg, or another implicit one; or {name}.hypergradient.nested=own_loss, which "
                f"takes {low} for a constant",
            )


def _check_optimum(problem: Problem) -> None:
    """What an estimator that knows the lower problem by its loss alone does not see of where its updates settle."""
    estimate = problem.hypergradient
    if estimate is None or estimate.needs.answers == "constant" or not _by_loss_alone(estimate.needs):
        return
    if getattr(problem.custom_optimizer_step, "__func__", None) is not Problem.custom_optimizer_step:
        log.warning(
            f"{problem.name}: {type(problem).__name__}.custom_optimizer_step may settle elsewhere than at the minimum "
            "of the loss; the hypergradient is that of the minimum"
        )
    groups = problem.optimizer.param_groups
    # AdamW says it of itself; Muon decays in no other way
    if not isinstance(problem.update.optimizer, L2) or any(group.get("decoupled_weight_decay") for group in groups):
        decay = max(float(group.get("weight_decay", 0.0)) for group in groups)
        if decay:
            log.warning(
                f"{problem.name}: the weight decay of {type(problem.optimizer).__name__} ({decay:g}) is that of no "
                "objective, so its hypergradient leaves it out, and is off where the decay moves the optimum. In it: "
                "weight decay of sgd or adam; hypergradient=unrolled"
            )
    rates = [float(group["lr"]) for group in groups if "lr" in group]
    if problem.scheduler is None and 0.0 in rates and any(rates):
        raise GraphError(
            f"parameters of {problem.name} have a learning rate of 0: they never move, and a hypergradient would take "
            "them for solved",
            where=f"problems.{problem.name}.optimizer",
            seen=f"rates {rates}",
            fix="freeze them: requires_grad_(False), or leave them out of trainable_parameters",
        )


def _by_loss_alone(needs: Needs) -> bool:
    return not needs.plain_steps


def _host_rng() -> tuple[object, bytes]:
    return random.getstate(), pickle.dumps(np.random.get_state())


def _loss(program: FunctionalProgram, problem: Problem, batch: Any) -> tuple[Tensor, Tensor | Mapping[str, Metric]]:
    """The loss of a step, and all that the step returned."""
    program.scratch_buffers()
    where = f"{type(problem).__name__}.training_step"
    hidden: list[str] = []
    with reentrant_calls(hidden.append):
        try:
            result = problem.training_step(batch)
            loss = loss_of(result, problem.name)
        except Exception as error:
            error.add_note(f"in the loss of {problem.name}")
            raise
    if hidden:
        raise GraphError(
            f"the loss of {problem.name} calls torch.utils.checkpoint with use_reentrant=True, torch's default, which "
            "gives no gradient to the parameters inside where a backward pass names its inputs, as mlorun's do",
            where=where,
            seen=hidden[0],
            fix="use_reentrant=False in that call",
        )
    if loss.numel() != 1:
        raise ConfigError(
            f"the loss of {problem.name} is not a scalar",
            where=where,
            seen=f"shape {tuple(loss.shape)}",
            fix="return its mean",
        )
    if not loss.requires_grad:
        raise GraphError(
            f"the loss of {problem.name} depends on no parameter",
            where=where,
            fix=f"call self(...) in it, or what {problem.name} trains; check for a detach or no_grad",
        )
    return loss, result


def _check_state(problem: Problem) -> None:
    state = problem.state_dict()
    if not isinstance(state, Mapping):
        raise ConfigError(
            f"{type(problem).__name__}.state_dict gives no mapping",
            where=f"problems.{problem.name}",
            seen=type(state).__name__,
            fix="return a mapping of names to plain containers, numbers, texts and tensors",
        )
    _check_held(problem, "state_dict", dict(state))


def _check_held(problem: Problem, function: str, made: Any) -> None:
    """A run could not be resumed from a checkpoint with anything but plain data in it."""
    why = why_not_held(made)
    if why is not None:
        raise ConfigError(
            f"{type(problem).__name__}.{function} gives what no checkpoint can hold",
            where=f"problems.{problem.name}",
            seen=why,
            fix="return plain containers, numbers, texts and tensors",
        )


def _metrics(problem: Problem, result: Tensor | Mapping[str, Metric]) -> list[str]:
    """The names of metrics. Raises ConfigError for what is none; functions are not called."""
    named = {"loss": result} if isinstance(result, Tensor) else result
    made = {key: value for key, value in named.items() if not callable(value)}
    metrics_of(made, f"{type(problem).__name__}.training_step")
    return list(named)
