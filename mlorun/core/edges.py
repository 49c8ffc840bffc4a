"""Does a loss read what its dependencies say, and nothing else? A dead edge has a hypergradient of zero, in silence."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set

from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.errors import GraphError
from mlorun.hypergradient import derivatives
from mlorun.hypergradient.estimator import Channel
from mlorun.hypergradient.estimators.first_order import FirstOrder

log = logging.getLogger("mlorun.core")

_AND = " and "


def _ways(problem: Problem, loss: Tensor, draws: Sequence[Tensor]) -> dict[Channel, tuple[Tensor, ...]]:
    """What upper problems can act on in a step of `problem`, by how."""
    start = problem.initial_parameters()
    return {
        "loss": (loss,),
        "start": () if start is None else tuple(start),
        "options": tuple(problem.learned_options().values()),
        "draws": tuple(draws),
    }


def require_edges(
    program: FunctionalProgram, graph: ProblemGraph, problem: Problem, loss: Tensor, draws: Sequence[Tensor]
) -> None:
    """Raise GraphError where `problem` and its dependencies do not go together.

    loss, draws   of one step: what it descends, and the log-probabilities of its draws
    """
    ways = _ways(problem, loss, draws)
    name = problem.name
    title = type(problem).__name__
    uppers = [upper for upper in graph.names if name in graph.u2l[upper]]
    if not graph.u2l[name] and not reads(loss, problem):
        raise GraphError(
            f"{title}.training_step never reads {name}'s own parameters, and {name} differentiates through nobody: "
            "its gradient would be zero",
            where=f"problems.{name}",
            fix="call self(...) in the loss, or declare the dependency that its parameters act through",
        )
    _require_declared(program, graph, problem, loss)
    for upper in uppers:
        used = {way for way, tensors in ways.items() if any(reads(t, program.problems[upper]) for t in tensors)}
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
    if estimates and all(isinstance(e, FirstOrder) for e in estimates) and not reads(loss, problem):
        log.warning(
            f"{name} learns nothing: its loss does not read its own parameters, and every hypergradient below it is "
            "first_order"
        )
    for lower in graph.lowers[name]:
        answers = graph.nodes_on_paths(lower)
        if not any(reads(loss, program.problems[low]) for low in (lower, *answers)):
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


def _require_declared(program: FunctionalProgram, graph: ProblemGraph, problem: Problem, loss: Tensor) -> None:
    """Raise GraphError where the loss reads a problem that no dependency speaks of: it would count as a constant."""
    name, title = problem.name, type(problem).__name__
    for peer in graph.names:
        declared = peer == name or peer in graph.lowers[name] or name in graph.u2l[peer]
        if not declared and reads(loss, program.problems[peer]):
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


def reads(value: Tensor, problem: Problem) -> bool:
    return derivatives.depends_on(value, problem.theta)
