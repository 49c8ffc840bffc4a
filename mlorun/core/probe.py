"""Before anything runs: every loss is a scalar, every declared edge is read, and every estimator fits its problem."""

from __future__ import annotations

import logging
import pickle
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlorun.core.graph import ProblemGraph
from mlorun.core.inner_loop import learned_options
from mlorun.core.problem import Problem, loss_of
from mlorun.core.world import World
from mlorun.errors import ConfigError, GraphError
from mlorun.hypergradient.draws import taped
from mlorun.hypergradient.first_order import FirstOrder
from mlorun.hypergradient.level import Channel

log = logging.getLogger("mlorun.core")

_AND = " and "
REPEATS_TO = 1e-3  # relative; kernels of accelerators do not give the same bits twice


def probe(world: World, graph: ProblemGraph) -> None:
    """Evaluate each loss once on its next batch and leave no trace. Raises GraphError or ConfigError.

    A hypergradient through an edge that no loss reads is zero, in silence: the commonest mistake in the field.
    """
    states = {name: p.stream.state_dict() for name, p in world.problems.items() if p.stream is not None}
    for name in sorted(graph.differentiated):
        _check_size(world, graph, name)
    for name, problem in world.problems.items():
        if problem.hypergradient is not None and name not in graph.differentiated:
            log.warning(
                f"problems.{name}.hypergradient is not used: nobody differentiates through {name}. A hypergradient "
                "stands with the lower problem."
            )
    before = _host_rng()
    drew = False
    with world.replay():
        for problem in world.problems.values():
            batch = problem.get_batch()
            with taped() as draws:
                loss = _loss(world, problem, batch)
            if problem.name in graph.differentiated:
                _check_repeats(world, problem, batch)
            _check_edges(world, graph, problem, loss, _ways(problem, loss, draws))
            drew = drew or _host_rng() != before
    for name, state in states.items():
        stream = world.problems[name].stream
        assert stream is not None
        stream.load_state_dict(state)
    world.host_rng = drew


def _check_size(world: World, graph: ProblemGraph, name: str) -> None:
    estimate = world.problems[name].hypergradient
    if estimate is not None:
        sizes = {other: sum(t.numel() for t in world.theta(other)) for other in (name, *graph.read_by(name))}
        theta = sizes.pop(name)
        estimate.require_size(name, theta, sum(sizes.values()))


def _host_rng() -> tuple[object, bytes]:
    return random.getstate(), pickle.dumps(np.random.get_state())


def _loss(world: World, problem: Problem, batch: Any) -> Tensor:
    world.scratch_buffers()
    loss = loss_of(problem.training_step(batch), problem.name)
    where = f"{type(problem).__name__}.training_step"
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
    return loss


def _check_repeats(world: World, problem: Problem, batch: Any) -> None:
    """A hypergradient evaluates a lower loss again: it must be a function of what is replayed."""
    moment = (world.moment(batch),)
    first, second = (float(world.loss(problem.name, moment, {}).detach()) for _ in range(2))
    if abs(first - second) > REPEATS_TO * abs(first):
        log.warning(
            f"the loss of {problem.name} is {first:g}, and {second:g} when it is evaluated again on the same batch, "
            "parameters and random state: its hypergradient will be off. Draw from torch's own generators, keep "
            "running numbers in buffers, and change no batch in place."
        )


def _ways(problem: Problem, loss: Tensor, draws: Sequence[Tensor]) -> dict[Channel, tuple[Tensor, ...]]:
    """What upper problems can act on in a step of `problem`, by how."""
    start = problem.initial_parameters()
    return {
        "loss": (loss,),
        "start": () if start is None else tuple(start),
        "options": tuple(learned_options(problem).values()),
        "draws": tuple(draws),
    }


def _check_edges(
    world: World, graph: ProblemGraph, problem: Problem, loss: Tensor, ways: Mapping[Channel, Sequence[Tensor]]
) -> None:
    name = problem.name
    title = type(problem).__name__
    uppers = [upper for upper in graph.names if name in graph.steers[upper]]
    if not graph.steers[name] and not _reads(loss, problem):
        raise GraphError(
            f"{title}.training_step never reads {name}'s own parameters, and {name} differentiates through nobody: "
            "its gradient would be zero",
            where=f"problems.{name}",
            fix="call self(...) in the loss, or declare the dependency that its parameters act through",
        )
    for upper in uppers:
        used = {way for way, tensors in ways.items() if any(_reads(t, world.problems[upper]) for t in tensors)}
        sees = problem.hypergradient.sees if problem.hypergradient is not None else frozenset[Channel]()
        if used and not used & sees:
            raise GraphError(
                f"{upper} acts on {name} by its {_AND.join(sorted(used))} alone, which this hypergradient does not "
                "differentiate: it would be zero",
                where=f"problems.{name}.hypergradient",
                seen=type(problem.hypergradient).__name__,
                fix=f"{name}.hypergradient=" + ("reinforce" if used == {"draws"} else "unrolled"),
            )
        if not used:
            raise GraphError(
                f"dependencies say {upper} -> {name}, but {title}.training_step never reads self.{upper}, "
                "so its hypergradient would be zero",
                where=f"dependencies.u2l.{upper}: [{name}]",
                fix=f"call self.{upper}(...) in the loss (outside any detach or no_grad), in initial_parameters or in "
                "optimizer_options, or drop the edge",
            )
    estimates = [world.problems[lower].hypergradient for lower in graph.between(name)]
    if estimates and all(isinstance(e, FirstOrder) for e in estimates) and not _reads(loss, problem):
        log.warning(
            f"{name} learns nothing: its loss does not read its own parameters, and first_order is all there is"
        )
    for middle in graph.between(name):
        for lower in graph.steers[middle]:
            if (middle, lower) in graph.unseen(name) or _reads(loss, world.problems[lower]):
                log.warning(
                    f"{name} reads {lower}, whose optimum answers {middle}, whose optimum answers {name}: the path "
                    f"{name} -> {middle} -> {lower} -> {name} is not part of the hypergradient. What {name} reads of "
                    f"{lower} counts as if {lower} did not answer {middle}."
                )
    for lower in graph.lowers[name]:
        if not _reads(loss, world.problems[lower]):
            raise GraphError(
                f"dependencies say {lower} -> {name}, but {title}.training_step never reads self.{lower}, "
                f"so nothing would flow through {lower}'s optimum",
                where=f"dependencies.l2u.{lower}: [{name}]",
                fix=f"call self.{lower}(...) in the loss (outside any detach or no_grad), or drop the edge",
            )


def _reads(value: Tensor, problem: Problem) -> bool:
    if not value.requires_grad:
        return False
    grads = torch.autograd.grad(value.sum(), problem.theta, retain_graph=True, allow_unused=True)
    return any(grad is not None for grad in grads)
