"""The gradient of an upper problem: one backward of its loss, then one sweep over the problems below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.replay.views import Views
from mlorun.core.state import chosen
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.inner_loop import Values
from mlorun.hypergradient.node import Node
from mlorun.hypergradient.sweep import Telemetry, sweep
from mlorun.hypergradient.vectors import Vector

Estimates = Mapping[str, Hypergradient]
# problems in order of a sweep: whom each is differentiated in, and who answers it, each after those that it depends on
Order = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


@dataclass(frozen=True)
class Gradient:
    """The gradient of an upper problem's loss, through every optimum below it; and measured numbers, () each."""

    vector: Vector
    telemetry: Telemetry


class Adjoint:
    """Gradients for one graph. Keeps each estimator's carry, and the gradient before, which telemetry compares with.

    carries   by upper and lower problem
    """

    def __init__(self, graph: ProblemGraph, views: Views) -> None:
        self._views = views
        self._graph = graph
        self._paths = {name: graph.nodes_on_paths(name) for name in graph.names}
        self._orders: dict[tuple[str, frozenset[str]], Order] = {}
        self.carries: dict[str, dict[str, Any]] = {name: {} for name in graph.names}
        self._previous: dict[str, Vector] = {}

    def below(self, name: str) -> tuple[str, ...]:
        """The problems that `name` differentiates through, in reverse order of execution."""
        return self._paths[name]

    def gradient(self, upper: str, loss: Tensor, scale: Tensor | None = None, *, measure: bool = False) -> Gradient:
        """d loss / d(upper's parameters), through its own use of them and through every optimum below it.

        loss      (), with its graph; freed by the call
        scale     () that the loss has been multiplied by (fp16, accumulation); the result carries it too
        measure   give telemetry
        """
        views = self._views
        direct, cotangents = self.cotangents(upper, loss, views)
        if not self._paths[upper]:
            return Gradient(direct, {})
        if scale is not None:
            inverse = scale.reciprocal()
            cotangents = {node: vectors.scale(part, inverse) for node, part in cotangents.items()}
        with views.program.replay():
            swept = sweep(
                self.nodes(upper, views), cotangents, self.carries[upper], views.upper_loss(upper), measure=measure
            )
        self.carries[upper] = swept.carries
        indirect = swept.total(upper)
        one = 1.0 if scale is None else scale
        gradient = direct if indirect is None else vectors.add(direct, indirect, alpha=one)
        telemetry = dict(swept.telemetry)
        if measure:
            telemetry["direct_norm"] = vectors.norm(direct) / one
            telemetry["indirect_norm"] = vectors.norm(indirect or vectors.zeros_like(direct))
            if upper in self._previous:
                telemetry["cosine_to_previous"] = vectors.cosine(gradient, self._previous[upper])
        self._previous[upper] = gradient
        return Gradient(gradient, telemetry)

    def cotangents(self, upper: str, loss: Tensor, views: Views) -> tuple[Vector, dict[str, Vector]]:
        """(d loss / d upper, {n: d loss / d theta_n}) for every n on upper's paths that the loss reads. One backward.

        views   what the loss was evaluated by
        """
        values: Values = {name: views.theta(name) for name in (upper, *self._paths[upper])}
        flat = tuple(t for vector in values.values() for t in vector)
        grads = iter(derivatives.partial_gradients(loss, flat))
        parts = {name: tuple(next(grads) for _ in vector) for name, vector in values.items()}
        direct = vectors.filled(parts.pop(upper), values[upper])
        return direct, {
            name: vectors.filled(part, values[name]) for name, part in parts.items() if any(g is not None for g in part)
        }

    def nodes(self, upper: str, views: Views, estimates: Estimates | None = None) -> tuple[Node, ...]:
        """The problems on upper's paths, each after every problem whose optimum depends on it.

        estimates   in place of the problems' own hypergradients
        """
        chosen = {name: (estimates or {}).get(name) or self.estimate(name) for name in self._paths[upper]}
        order = self._order(upper, frozenset(name for name, e in chosen.items() if e.needs.nested == "own_loss"))

        def node(name: str) -> Node:
            estimate = chosen[name]
            again = estimate if estimates is not None and estimate.needs.tangents else None
            reads, below = order[name]
            return Node(
                views.view(name, reads, estimate=again),
                estimate,
                tuple(node(low) for low in below if chosen[low].needs.answers != "constant"),
            )

        return tuple(node(name) for name in order)

    def _order(self, upper: str, own_loss: frozenset[str]) -> Order:
        key = upper, own_loss
        if key not in self._orders:
            graph, order = self._graph, self._graph.sweep_order(upper, own_loss)
            upwards = tuple(reversed(order))
            depends = {name: graph.outside(name, own_loss=name in own_loss) for name in order}
            below = {name: () if name in own_loss else graph.nodes_on_paths(name) for name in order}
            self._orders[key] = {
                name: (
                    tuple(other for other in (*upwards, upper) if other in depends[name]),
                    tuple(low for low in upwards if low in below[name]),
                )
                for name in order
            }
        return self._orders[key]

    def estimate(self, node: str) -> Hypergradient:
        """How the problems above differentiate through `node`."""
        estimate = self._views.program.problems[node].hypergradient
        assert estimate is not None, f"{node} has no hypergradient"
        return estimate

    def keep_carries(self, upper: str, before: Mapping[str, Any], finite: Tensor) -> None:
        """Of the tensors in the carries of `upper`, keep those `before` the last gradient where that was not finite.

        finite   (), on the device: nobody waits for it
        """
        for node, carry in self.carries[upper].items():
            if node in before:
                estimate = self.estimate(node)
                packed = chosen(finite, estimate.pack(carry), estimate.pack(before[node]))
                self.carries[upper][node] = estimate.unpack(packed)

    def choices(self) -> dict[str, str]:
        """What every edge really uses so far: {"reweight <- classifier": "Identity x ForwardOverReverse"}."""
        return {
            f"{upper} <- {node}": self.estimate(node).in_use(carry)
            for upper, carries in self.carries.items()
            for node, carry in carries.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """Every carry, and the gradients before, as plain containers, numbers and tensors."""
        carries = {
            upper: {node: self.estimate(node).pack(carry) for node, carry in by_node.items()}
            for upper, by_node in self.carries.items()
        }
        return {"carries": carries, "previous": dict(self._previous)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from these carries and gradients."""
        self.carries = {
            upper: {node: self.estimate(node).unpack(packed) for node, packed in by_node.items()}
            for upper, by_node in state["carries"].items()
        }
        self._previous = {name: tuple(vector) for name, vector in state["previous"].items()}
