"""The gradient of an upper problem: one backward of its loss, then one sweep over the graph below it.

With F the upper loss, n the problems below and B_nm = d2 L_n / d m d theta_n:

    v_n  = dF/dtheta_n                              for every n that F reads
    in reverse order of execution, for each n:
        v_m -= B_nm H_n^-1 v_n                      for each lower problem m whose optimum L_n reads
        g   -= B_nU H_n^-1 v_n                      if L_n reads the upper problem U

One solve a problem, so the cost is linear in edges. Summing over paths one by one gives the same at more cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mlorun.core.graph import ProblemGraph
from mlorun.core.problem import Problem
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector

# what an estimator moves by evaluating losses inside is put back at the end
Replay = Callable[[], AbstractContextManager[None]]
MakeLevel = Callable[[str, tuple[str, ...]], Level]


class Adjoint:
    """Gradients for one graph. Keeps each estimator's carry, by (upper, lower)."""

    def __init__(self, problems: Mapping[str, Problem], graph: ProblemGraph, level: MakeLevel, replay: Replay) -> None:
        self._problems = problems
        self._level = level
        self._replay = replay
        self.carries: dict[tuple[str, str], object] = {}
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
        between = self._between[upper]
        own = self._problems[upper].theta
        inputs = [*own]
        for node in between:
            inputs.extend(self._problems[node].theta)
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
        direct = vectors.filled(grads[: len(own)], own)
        if not between:
            return direct
        # v holds what each problem's optimum is pulled by: absent until something reads it
        v: dict[str, Vector] = {}
        start = len(own)
        for node in between:
            theta = self._problems[node].theta
            part = grads[start : start + len(theta)]
            start += len(theta)
            if any(g is not None for g in part):
                v[node] = vectors.filled(part, theta)
        if scale is not None:
            inverse = scale.reciprocal()
            v = {node: vectors.scale(part, inverse) for node, part in v.items()}
        indirect = self._sweep(upper, v)
        if indirect is None:
            return direct
        return vectors.add(direct, indirect, alpha=1.0 if scale is None else scale)

    def _sweep(self, upper: str, v: dict[str, Vector]) -> Vector | None:
        total: Vector | None = None
        for node in self._between[upper]:
            if node not in v:
                continue
            estimate = self._problems[node].hypergradient
            assert estimate is not None, f"{node} has no hypergradient"
            level = self._level(node, self._reads[upper, node])
            with self._replay():
                parts, carry = estimate(level, v[node], self.carries.get((upper, node)))
            self.carries[upper, node] = carry
            for name, part in parts.items():
                if name == upper:
                    total = part if total is None else vectors.add(total, part)
                else:
                    v[name] = vectors.add(v[name], part) if name in v else part
        return total
