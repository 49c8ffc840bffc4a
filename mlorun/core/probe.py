"""Before anything runs: every loss is a scalar, every declared edge is read, and every estimator fits its problem."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Metric, Problem, loss_of, metrics_of
from mlorun.core.program.update import L2
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.core.replay.recompute import reentrant_calls
from mlorun.data.batches import map_tensors, packed
from mlorun.errors import ConfigError, GraphError
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.draws import taped
from mlorun.hypergradient.estimator import Channel, Needs
from mlorun.hypergradient.estimators.first_order import FirstOrder
from mlorun.hypergradient.inner_loop import Values
from mlorun.run.checkpoint import why_not_held

log = logging.getLogger("mlorun.core")

_AND = " and "
REPEATS_TO = 1e-3  # relative; kernels of accelerators do not give the same bits twice


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
            batch = problem.get_batch()
            written = _versions(batch)
            with taped() as draws:
                loss, result = _loss(program, problem, batch)
            _check_state(problem)
            if problem.makes_batches and problem.name in graph.differentiated:
                _check_held(problem, "get_batch", packed(batch))
            if not torch.isfinite(loss.detach()).all():
                log.warning(
                    "the loss of %s is %s on its first batch, before any step: see its data and its loss",
                    problem.name,
                    float(loss.detach()),
                )
            if _versions(batch) != written and (problem.name in graph.differentiated or graph.lowers[problem.name]):
                raise GraphError(
                    f"the loss of {problem.name} changes its batch in place, and an estimator that evaluates it again "
                    "on that batch would see another one",
                    where=f"{type(problem).__name__}.training_step",
                    seen="an operation such as x.mul_(...) or x[...] = ...",
                    fix="write x = x * ...",
                )
            metrics += [f"{problem.name}/{key}" for key in _metrics(problem, result)]
            if problem.name in graph.differentiated:
                _check_repeats(program, problem, batch)
            if problem.name in graph.differentiated or graph.lowers[problem.name]:
                _check_replays(program, problem, batch)
            _check_edges(program, graph, problem, loss, _ways(problem, loss, draws))
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
    return needs.inner_loop is None and not needs.tangents


def _versions(batch: Any) -> list[int]:
    """How often each tensor of a batch was written in place."""
    versions: list[int] = []
    map_tensors(lambda tensor: versions.append(tensor._version), batch)
    return versions


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


def _check_repeats(program: FunctionalProgram, problem: Problem, batch: Any) -> None:
    """A hypergradient evaluates a lower loss again: it must be a function of what is replayed."""
    snapshot = (program.snapshot(batch, None),)
    first, second = (float(program.loss(problem.name, snapshot, {}).detach()) for _ in range(2))
    if abs(first - second) > REPEATS_TO * abs(first):
        log.warning(
            f"the loss of {problem.name} is {first:g}, and {second:g} when it is evaluated again on the same batch, "
            "parameters and random state: its hypergradient will be off. Draw from torch's own generators, keep "
            "running numbers in buffers, and change no batch in place."
        )


def _check_replays(program: FunctionalProgram, problem: Problem, batch: Any) -> None:
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
            if any(_reads(result, other) for result in results):
                raise GraphError(
                    f"{type(problem).__name__}.{function} reads parameters of {name} that were kept elsewhere, and a "
                    "hypergradient, which puts other values in their place, does not reach them there",
                    where=f"problems.{problem.name}",
                    seen="an attribute, a list or a closure with parameters in it",
                    fix=f"read them anew in {function}, from the module: self.module.weight, self.module.parameters()",
                )
    _check_kinds(problem, loss, values)


def _check_kinds(problem: Problem, loss: Tensor, values: Values) -> None:
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


def _ways(problem: Problem, loss: Tensor, draws: Sequence[Tensor]) -> dict[Channel, tuple[Tensor, ...]]:
    """What upper problems can act on in a step of `problem`, by how."""
    start = problem.initial_parameters()
    return {
        "loss": (loss,),
        "start": () if start is None else tuple(start),
        "options": tuple(problem.learned_options().values()),
        "draws": tuple(draws),
    }


def _check_edges(
    program: FunctionalProgram,
    graph: ProblemGraph,
    problem: Problem,
    loss: Tensor,
    ways: Mapping[Channel, Sequence[Tensor]],
) -> None:
    name = problem.name
    title = type(problem).__name__
    uppers = [upper for upper in graph.names if name in graph.u2l[upper]]
    if not graph.u2l[name] and not _reads(loss, problem):
        raise GraphError(
            f"{title}.training_step never reads {name}'s own parameters, and {name} differentiates through nobody: "
            "its gradient would be zero",
            where=f"problems.{name}",
            fix="call self(...) in the loss, or declare the dependency that its parameters act through",
        )
    _check_declared(program, graph, problem, loss)
    for upper in uppers:
        used = {way for way, tensors in ways.items() if any(_reads(t, program.problems[upper]) for t in tensors)}
        channels = problem.hypergradient.needs.channels if problem.hypergradient is not None else frozenset[Channel]()
        unseen = used - channels
        if unseen == {"start"} and used != unseen:
            log.warning(
                f"{upper} acts on {name} by its {_AND.join(sorted(used))}. This hypergradient is that of the optimum, "
                f"which does not depend on where the inner loop starts; {name}.hypergradient=unrolled differentiates "
                "the start too."
            )
        elif unseen:
            raise GraphError(
                f"{upper} acts on {name} by its {_AND.join(sorted(used))}, and this hypergradient does not "
                f"differentiate through its {_AND.join(sorted(unseen))}: that part would be zero",
                where=f"problems.{name}.hypergradient",
                seen=type(problem.hypergradient).__name__,
                fix=f"{name}.hypergradient=" + _differentiates(used),
            )
        if not used:
            raise GraphError(
                f"dependencies say {upper} -> {name}, but {_unread(problem, upper)}, "
                "so its hypergradient would be zero",
                where=f"dependencies.u2l.{upper}: [{name}]",
                fix=f"call self.{upper}(...) in the loss (outside any detach or no_grad), in initial_parameters or in "
                "optimizer_options, or drop the edge",
            )
    estimates = [program.problems[lower].hypergradient for lower in graph.nodes_on_paths(name)]
    if estimates and all(isinstance(e, FirstOrder) for e in estimates) and not _reads(loss, problem):
        log.warning(
            f"{name} learns nothing: its loss does not read its own parameters, and every hypergradient below it is "
            "first_order"
        )
    for lower in graph.lowers[name]:
        answers = graph.nodes_on_paths(lower)
        if not any(_reads(loss, program.problems[low]) for low in (lower, *answers)):
            raise GraphError(
                f"dependencies say {lower} -> {name}, but {_unread(problem, lower)}, "
                f"so nothing would flow through {lower}'s optimum",
                where=f"dependencies.l2u.{lower}: [{name}]",
                fix=f"call self.{lower}(...) in the loss (outside any detach or no_grad), or drop the edge",
            )


def _unread(problem: Problem, peer: str) -> str:
    step = f"{type(problem).__name__}.training_step"
    if peer in problem.peers_read:
        return f"{step} reads self.{peer} where no gradient passes: under no_grad, detached, or beside the loss"
    return f"{step} never reads self.{peer}"


def _check_declared(program: FunctionalProgram, graph: ProblemGraph, problem: Problem, loss: Tensor) -> None:
    """Raise GraphError where the loss reads a problem that no dependency speaks of: it would count as a constant."""
    name, title = problem.name, type(problem).__name__
    for peer in graph.names:
        declared = peer == name or peer in graph.lowers[name] or name in graph.u2l[peer]
        if not declared and _reads(loss, program.problems[peer]):
            raise GraphError(
                f"{title}.training_step reads self.{peer}, and no dependency says so: nobody would differentiate "
                f"through it",
                where="dependencies",
                seen=f"{name} reads {', '.join(graph.lowers[name]) or 'nobody'} by its dependencies",
                fix=f"dependencies.l2u.{peer}: [{name}] if {name} is the upper problem, "
                f"dependencies.u2l.{peer}: [{name}] if {peer} is, or detach what is a constant",
            )


def _differentiates(used: Set[Channel]) -> str:
    """An option that differentiates by all of these ways."""
    if used == {"draws"}:
        return "reinforce"
    return "evolution" if "draws" in used else "unrolled"


def _reads(value: Tensor, problem: Problem) -> bool:
    return derivatives.depends_on(value, problem.theta)
