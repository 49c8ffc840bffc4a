"""A reference for any program: every lower problem solved again, by Newton's method, the problems below it inside.

It shares no code with the estimators: the derivative is a difference quotient of the upper loss at the solved program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.schedule import Action, Plan
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.verify.oracles import Given, Row

Loss = Callable[[Mapping[str, Tensor]], Tensor]
NEWTON = 12


def argmin(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """By Newton's method until a step is small, and two steps more, in which the square of a square is left of it.

    Differentiable in whatever the loss closes over: two steps at the solution are exact to the third order."""
    x = start.detach()
    for _ in range(NEWTON):
        step = _newton(loss, x.requires_grad_(), graph=False).detach()
        moved = float((step - x.detach()).norm())
        x = step
        if moved < 1e-6:
            break
    for _ in range(2):
        x = _newton(loss, x if x.requires_grad else x.requires_grad_(), graph=True)
    return x


def _newton(loss: Callable[[Tensor], Tensor], x: Tensor, *, graph: bool) -> Tensor:
    (gradient,) = torch.autograd.grad(loss(x), x, create_graph=True)
    rows = [torch.autograd.grad(g, x, create_graph=graph, retain_graph=True)[0] for g in gradient]
    return x - torch.linalg.solve(torch.stack(rows), gradient)


class Solved:
    """A program as nested argmins.

    losses   by name, of every problem's row; `decay` adds weight decay to a loss
    starts   where Newton's method starts
    """

    def __init__(
        self,
        losses: Mapping[str, Loss],
        graph: ProblemGraph,
        starts: Mapping[str, Tensor],
        decay: Mapping[str, float] | None = None,
    ) -> None:
        self.graph = graph
        self.starts = dict(starts)
        self.decay = dict(decay or {})
        self.losses = losses

    def total(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """The loss of `name`, weight decay included, where everything below that answers it has answered."""
        below = self.graph.nodes_on_paths(name)
        complete = self.solve(values, tuple(low for low in self.graph.order if low in below))
        own = values[name]
        return self.losses[name](complete) + self.decay.get(name, 0.0) * own.square().sum() / 2

    def solve(self, values: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
        """`values`, and the optima of `names`, each after those that it depends on."""
        complete = dict(values)
        waiting = list(names)
        while waiting:
            name = next(n for n in waiting if not any(o in self.graph.outside(n) for o in waiting))
            waiting.remove(name)
            complete[name] = argmin(
                lambda row, name=name: self.total(name, {**complete, name: row}),  # type: ignore[misc]
                self.starts[name],
            )
        return complete

    def value(self, upper: str, row: Tensor) -> Tensor:
        """F at the solved program."""
        return self.losses[upper](self.at(upper, row))

    def at(self, upper: str, row: Tensor) -> dict[str, Tensor]:
        """Every row at the solved program, detached."""
        below = tuple(low for low in self.graph.order if low in self.graph.below(upper))
        rest = {name: start for name, start in self.starts.items() if name not in below}
        solved = {name: part.detach() for name, part in self.solve({**rest, upper: row}, below).items()}
        self.starts.update({name: solved[name] for name in below})  # near to where the next solve ends
        return solved

    def slope(self, upper: str, h: float = 1e-4) -> Tensor:
        """dF/dlam of the solved program, by central differences."""
        start = self.starts[upper]
        units = torch.eye(len(start))
        return torch.stack(
            [(self.value(upper, start + h * e) - self.value(upper, start - h * e)) / (2 * h) for e in units]
        )

    def gradient(self, upper: str, hypergradient: Callable[[str], Hypergradient]) -> Tensor:
        """What mlorun gives at the solved program, one step of each lower problem at learning rate 0 behind it."""
        return self.engine(upper, hypergradient).gradient(upper)[0]

    def engine(self, upper: str, hypergradient: Callable[[str], Hypergradient], **options: Any) -> Engine:
        """One step of each lower problem at the solved program, at learning rate 0."""
        points = self.at(upper, self.starts[upper])

        def sgd(name: str) -> Callable[[Any], torch.optim.Optimizer]:
            return lambda theta: torch.optim.SGD(theta, lr=0.0, weight_decay=self.decay.get(name, 0.0))

        problems = [
            Given(
                name=name,
                module=Row(points[name]),
                optimizer=sgd(name),
                hypergradient=hypergradient(name) if name in self.graph.differentiated else None,
                loss=self.losses[name],
            )
            for name in self.graph.names
        ]
        below = self.graph.below(upper)
        loop = tuple(Action(low, starts=True) for low in self.graph.order if low in below)
        engine = Engine(problems, self.graph, train_iters=1, plan=Plan((), (loop,)), **options)
        for _ in engine.steps():
            pass
        return engine
