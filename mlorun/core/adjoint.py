"""The gradient of an upper problem: one backward of its loss, then one sweep over the graph below it.

With F the upper loss, n the problems below and B_nm = d2 L_n / d m d theta_n:

    v_n  = dF/dtheta_n                              for every n that F reads
    in reverse order of execution, for each n:
        v_m -= B_nm H_n^-1 v_n                      for each lower problem m whose optimum L_n reads
        g   -= B_nU H_n^-1 v_n                      if L_n reads the upper problem U

One solve a problem, so the cost is linear in edges. Summing over paths one by one gives the same at more cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mlorun.core.graph import ProblemGraph
from mlorun.core.levels import Levels
from mlorun.core.problem import Problem
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Hypergradient, Outer
from mlorun.hypergradient.trajectory import Values
from mlorun.hypergradient.vectors import Vector

# what an estimator moves by evaluating losses inside is put back at the end
Replay = Callable[[], AbstractContextManager[None]]


class Adjoint:
    """Gradients for one graph. Keeps each estimator's carry, by (upper, lower).

    numbers   while a dict, takes () tensors about the next gradients: "UPPER" to {name: value}; else None
    """

    def __init__(
        self,
        problems: Mapping[str, Problem],
        graph: ProblemGraph,
        levels: Levels,
        replay: Replay,
    ) -> None:
        self._problems = problems
        self._levels = levels
        self._replay = replay
        self.carries: dict[tuple[str, str], Any] = {}
        self.numbers: dict[str, dict[str, Tensor]] | None = None
        self._previous: dict[str, Vector] = {}
        self._between = {name: graph.between(name) for name in graph.names}
        self._reads = {
            (upper, node): tuple(
                name
                for name in (*graph.lowers[node], upper)
                if (node in graph.steers[upper] if name == upper else name in between)
            )
            for upper, between in self._between.items()
            for node in between
        }

    def gradient(self, upper: str, loss: Tensor, scale: Tensor | None = None) -> Vector:
        """d loss / d(upper's parameters), through its own use of them and through every optimum below it.

        loss    (), with its graph; freed by the call
        scale   () that the loss has been multiplied by (fp16); the result carries it too
        """
        direct, v = self.pulls(upper, loss, {name: self._problems[name].theta for name in self._parts(upper)})
        if not self._between[upper]:
            return direct
        if scale is not None:
            inverse = scale.reciprocal()
            v = {node: vectors.scale(part, inverse) for node, part in v.items()}
        numbers = None if self.numbers is None else self.numbers.setdefault(upper, {})
        parts = self.sweep(upper, v, numbers)
        indirect = total(parts, upper)
        one = 1.0 if scale is None else scale
        gradient = direct if indirect is None else vectors.add(direct, indirect, alpha=one)
        if numbers is not None:
            numbers["direct_norm"] = vectors.norm(direct) / one
            numbers["indirect_norm"] = vectors.norm(indirect or vectors.zeros_like(direct))
            if upper in self._previous:
                numbers["cosine_to_previous"] = vectors.cosine(gradient, self._previous[upper])
        self._previous[upper] = gradient
        return gradient

    def pulls(self, upper: str, loss: Tensor, values: Values) -> tuple[Vector, dict[str, Vector]]:
        """(d loss / d upper, {n: d loss / d theta_n}) for every n between that the loss reads. One backward.

        values   the tensors that the loss was made of, for the upper problem and all between
        """
        names = self._parts(upper)
        inputs = [t for name in names for t in values[name]]
        grads = iter(torch.autograd.grad(loss, inputs, allow_unused=True))
        found: dict[str, tuple[Tensor | None, ...]] = {name: tuple(next(grads) for _ in values[name]) for name in names}
        direct = vectors.filled(found.pop(upper), values[upper])
        return direct, {
            name: vectors.filled(part, values[name]) for name, part in found.items() if any(g is not None for g in part)
        }

    def sweep(
        self,
        upper: str,
        pulls: Mapping[str, Vector],
        numbers: dict[str, Tensor] | None = None,
        *,
        estimates: Mapping[str, Hypergradient] | None = None,
        carries: MutableMapping[tuple[str, str], Any] | None = None,
        levels: Levels | None = None,
    ) -> dict[tuple[str, str], Vector]:
        """What each edge adds: {(node, name): -B_{node, name} H_node^-1 v_node} for every `name` that node reads.

        pulls       dF/dtheta_n of the problems that F reads
        estimates   instead of the problems' own hypergradients; likewise carries and levels
        """
        carries = self.carries if carries is None else carries
        levels = levels or self._levels
        v = dict(pulls)
        edges: dict[tuple[str, str], Vector] = {}
        for node in self._between[upper]:
            if node not in v:
                continue
            estimate = (estimates or {}).get(node) or self._estimate(node)
            if estimates is not None and estimate.follows:
                levels.follow_again(node, estimate, self._reads[upper, node])
            report = None if numbers is None else partial(_put, numbers, node)
            if report is not None:
                report("pull_norm", vectors.norm(v[node]))
            outer = _outer(levels, upper, node, pulls.get(node), v[node])
            at = levels.level(node, self._reads[upper, node], outer, report)
            with self._replay():
                parts, carry = estimate(at, v[node], carries.get((upper, node)))
            carries[upper, node] = carry
            for name, part in parts.items():
                edges[node, name] = part
                if name != upper:
                    v[name] = vectors.add(v[name], part) if name in v else part
        return edges

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Every carry, by upper and lower problem, as plain data."""
        found: dict[str, dict[str, Any]] = {}
        for (upper, node), carry in self.carries.items():
            found.setdefault(upper, {})[node] = self._estimate(node).pack(carry)
        return found

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Go on from these carries."""
        self.carries = {
            (upper, node): self._estimate(node).unpack(packed)
            for upper, by_node in state.items()
            for node, packed in by_node.items()
        }

    def _estimate(self, node: str) -> Hypergradient:
        estimate = self._problems[node].hypergradient
        assert estimate is not None, f"{node} has no hypergradient"
        return estimate

    def choices(self) -> dict[str, str]:
        """What every edge really uses so far: {"reweight <- classifier": "Identity x ForwardOverReverse"}."""
        return {
            f"{upper} <- {node}": self._estimate(node).in_use(carry) for (upper, node), carry in self.carries.items()
        }

    def _parts(self, upper: str) -> tuple[str, ...]:
        return (upper, *self._between[upper])


def _outer(levels: Levels, upper: str, node: str, direct: Vector | None, v: Vector) -> Outer:
    """F as a function of one level: its own dependence, and to first order what comes through other levels."""

    def outer(theta: Vector, lam: Values) -> Tensor:
        if direct is None:
            return vectors.inner(v, theta)
        loss = levels.outer_loss(upper, {**lam, node: theta})
        if direct is v:
            return loss
        return loss + vectors.inner(vectors.add(v, direct, alpha=-1.0), theta)

    return outer


def total(edges: Mapping[tuple[str, str], Vector], name: str) -> Vector | None:
    """The sum of what the edges into `name` add; None where there are none."""
    found: Vector | None = None
    for (_, to), part in edges.items():
        if to == name:
            found = part if found is None else vectors.add(found, part)
    return found


def _put(numbers: dict[str, Tensor], node: str, key: str, value: Tensor) -> None:
    numbers[f"{node}/{key}"] = value
