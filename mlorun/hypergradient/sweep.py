"""One sweep over the problems below an upper one: a pure function of their levels, their estimators and the carries.

With F the upper loss, n the problems below, H_n = d2 L_n / d theta_n2 and B_nm = d2 L_n / d m d theta_n:

    v_n  = dF/dtheta_n                              for every n that F reads
    for each n, after every problem whose optimum depends on n's:
        v_m -= B_nm H_n^-1 v_n                      for each other problem m that L_n reads
        g   -= B_nU H_n^-1 v_n                      if L_n reads the upper problem U

A problem m is one whose optimum L_n reads, or one that steers n. Where n itself steers others, L_n is its total loss,
in which these have answered (lower_optima.py): H_n and B_nm are total derivatives.

One solve a problem, so the cost is linear in edges. Summing over paths one by one gives the same at more cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from mlorun.errors import GraphError
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.inner_loop import Values
from mlorun.hypergradient.level import Level, UpperLoss
from mlorun.hypergradient.node import Node
from mlorun.hypergradient.vectors import Vector

# (problem, whom its estimator differentiates in): the contribution
Edges = dict[tuple[str, str], Vector]
# by problem: what its estimator gave to itself for the next call
Carries = Mapping[str, Any]
# by problem and quantity, "classifier/residual": () tensors
Telemetry = dict[str, Tensor]


@dataclass(frozen=True)
class Swept:
    """What a sweep gives: {(n, m): -B_nm H_n^-1 v_n}, the carries of the next sweep, and measured numbers."""

    edges: Edges
    carries: dict[str, Any]
    telemetry: Telemetry

    def total(self, name: str) -> Vector | None:
        """The sum of what the edges into `name` add; None where there are none."""
        return total(self.edges, name)


def sweep(
    nodes: Sequence[Node],
    cotangents: Mapping[str, Vector],
    carries: Carries,
    upper_loss: Callable[[Values], Tensor],
    *,
    measure: bool = False,
) -> Swept:
    """What each edge adds to the gradient of the upper problem.

    nodes        the problems below, each after every problem whose optimum depends on it
    cotangents   dF/dtheta_n of the problems that F reads
    upper_loss   F with parameters put in, (), on the upper problem's micro-batch at hand
    measure      give telemetry: norms of the cotangents, and what solvers measure
    """
    v = dict(cotangents)
    edges: Edges = {}
    after = dict(carries)
    telemetry: Telemetry = {}
    below = {node.problem.name for node in nodes}
    for node in nodes:
        name = node.problem.name
        if name not in v:
            continue
        report = partial(_put, telemetry, name) if measure else None
        if report is not None:
            report("cotangent_norm", vectors.norm(v[name]))
        if name not in carries:
            node.check()
        level = node.level(UpperLoss(upper_loss, cotangents.get(name), v[name]), report)
        parts, after[name] = _estimated(node.estimate, level, v[name], carries.get(name))
        for other, part in parts.items():
            edges[name, other] = part
            if other in below:
                v[other] = vectors.add(v[other], part) if other in v else part
    return Swept(edges, after, telemetry)


def _estimated(estimate: Hypergradient, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], Any]:
    try:
        return estimate(level, v, carry)
    except derivatives.Unsupported as error:
        if not derivatives.is_missing(error):
            raise
        raise GraphError(
            f"the loss of {level.name} goes through a kernel without a derivative that this hypergradient needs",
            where=f"problems.{level.name}.hypergradient",
            seen=f"{type(estimate).__name__}: {str(error).splitlines()[0][:120]}",
            fix=f"{level.name}.hypergradient=t1t2 or cg, which take differences instead, or evolution",
        ) from error


def total(edges: Mapping[tuple[str, str], Vector], name: str) -> Vector | None:
    """The sum of what the edges into `name` add; None where there are none."""
    parts = [part for (_, to), part in edges.items() if to == name]
    if not parts:
        return None
    result, *others = parts
    for part in others:
        result = vectors.add(result, part)
    return result


def _put(telemetry: Telemetry, node: str, key: str, value: Tensor) -> None:
    telemetry[f"{node}/{key}"] = value
