"""The lower problems of one point as functions of the upper parameters: each solved after those it depends on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.errors import GraphError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.autograd import gradient, leaves
from mlorun.verify.point import VerificationPoint
from mlorun.verify.solve import Gradient, Solution, solve

TINY = 20  # parameters of a problem whose gradient is taken by differences of re-solved losses
STENCIL = 2e-3  # of these differences, relative

Values = dict[str, Tensor]  # parameters in one row, by problem


class DoesNotApply(Exception):
    """Why the solved program has no derivative of this kind, or not at a bearable price."""


def responding(graph: ProblemGraph, upper: str) -> tuple[str, ...]:
    """The problems below `upper` whose optimum changes with it, each after those that it depends on.

    Raises DoesNotApply where two problems answer each other.
    """
    try:
        return tuple(reversed(graph.sweep_order(upper)))
    except GraphError as circle:
        raise DoesNotApply(circle.message) from None


class SolvedProgram:
    """The lower problems of one point as functions of the upper parameters.

    Raises DoesNotApply where two of them answer each other.
    """

    def __init__(self, point: VerificationPoint, budget: int) -> None:
        self._point = point
        self._views = point.finest
        self._budget = budget
        self._problems = point.engine.problems
        graph = point.engine.graph
        self._names = responding(graph, point.upper)
        self.nests = {name: nest for name in self._names if (nest := responding(graph, name))}
        inside = {low for nest in self.nests.values() for low in nest}
        self._outer = tuple(name for name in self._names if name not in inside)
        self.lam = vectors.flat(tuple(t.detach() for t in self._views.theta(point.upper)))
        self.start = {name: self._row(name) for name in self._names}
        self.first: dict[str, Solution] = {}
        self.worst: dict[str, float] = {}
        self.spent: set[str] = set()
        self.losses: dict[str, tuple[float, float]] = {}

    def checked(self, implicit_is_zero: bool) -> tuple[str, ...]:
        """What the solved program leaves out of the one that runs. Raises DoesNotApply."""
        notes = []
        for name in self._names:
            problem = self._problems[name]
            kind = type(problem)
            if kind.optimizer_options is not Problem.optimizer_options:
                raise DoesNotApply(
                    f"options of {name}'s optimizer are learned: what they do is in the updates, not in an optimum"
                )
            if kind.initial_parameters is not Problem.initial_parameters and implicit_is_zero:
                raise DoesNotApply(f"the start of {name}'s inner loops is learned: its optimum does not depend on it")
            if problem.hypergradient is not None and problem.hypergradient.needs.channels == {"draws"}:
                raise DoesNotApply(f"{name} is steered by the distribution of its random draws")
            groups = problem.optimizer.param_groups
            if len({bool(group.get("maximize")) for group in groups}) > 1:
                raise DoesNotApply(f"{name}'s optimizer lowers its loss in some parameters and raises it in others")
            if problem.update.decay is None and any(group.get("weight_decay") for group in groups):
                notes.append(f"{name}: the weight decay of its optimizer is decoupled, part of no loss, and left out")
            if kind.param_callback is not Problem.param_callback:
                notes.append(f"{name}: what param_callback does after a step is left out")
        for name, nest in self.nests.items():
            size = len(self.start[name])
            if size > TINY:
                raise DoesNotApply(
                    f"{name} steers {', '.join(nest)}, so that its gradient would be taken by differences of re-solved "
                    f"losses: {size} parameters are too many ({TINY} at most)"
                )
        if implicit_is_zero and not self._names:
            raise DoesNotApply("no optimum below depends on the upper parameters")
        return tuple(notes)

    def upper_loss(self, lam: Tensor, values: Values) -> float:
        """F with these parameters put in."""
        upper = self._point.upper
        put_in = self._put_in({**values, upper: lam})
        return float(self._views.upper_loss(upper)(put_in).detach())

    def solved(self, lam: Tensor, start: Values) -> Values:
        """Every lower problem at these upper parameters, solved on from `start`."""
        return self._solved(self._outer, {**start, self._point.upper: lam})

    def _solved(self, names: tuple[str, ...], values: Values) -> Values:
        values = dict(values)
        for name in names:
            if name in self.nests:
                values[name] = self._solve(name, self._nested_gradient(name, values), values)
                values = self._solved(self._within(name), values)
            else:
                values[name] = self._solve(name, self._plain_gradient(name, values), values)
        return values

    def _within(self, name: str) -> tuple[str, ...]:
        """Who is solved for each value of `name`; those inside another of them are left to that one."""
        nest = self.nests[name]
        inside = {low for other in nest if other in self.nests for low in self.nests[other]}
        return tuple(low for low in nest if low not in inside)

    def _solve(self, name: str, gradient: Gradient, values: Values) -> Tensor:
        first = name not in self.first
        solution = solve(gradient, values[name], self._budget, None if first else self.first[name].scale)
        if first:
            self.first[name] = solution
            before, after = (self._value(name, {**values, name: row}) for row in (values[name], solution.theta))
            self.losses[name] = before, after
        if solution.gradients >= self._budget:
            self.spent.add(name)
        left = solution.after / solution.scale if solution.scale else 0.0
        self.worst[name] = max(self.worst.get(name, 0.0), left)
        return solution.theta

    def _value(self, name: str, values: Values) -> float:
        """What the optimizer lowers: the loss with its weight decay; those that the problem steers, solved again."""
        if name in self.nests:
            values = self._solved(self._within(name), values)
        loss = self._views.loss(name, self._views.history(name).last, self._put_in(values))
        sign = -1.0 if self._problems[name].optimizer.param_groups[0].get("maximize") else 1.0
        row = values[name]
        return sign * float(loss.detach()) + float(row @ self._with_decay(name, torch.zeros_like(row), row)) / 2

    def _plain_gradient(self, name: str, values: Values) -> Gradient:
        """d/dtheta of the loss and the optimizer's weight decay."""
        held = self._put_in({other: row for other, row in values.items() if other != name})
        sign = -1.0 if self._problems[name].optimizer.param_groups[0].get("maximize") else 1.0

        def slope(row: Tensor) -> Tensor:
            theta = leaves(self._shaped(name, row))
            loss = self._views.loss(name, self._views.history(name).last, {**held, name: theta})
            parts = gradient(loss, theta)
            return self._with_decay(name, sign * vectors.flat(parts), row)

        return slope

    def _nested_gradient(self, name: str, values: Values) -> Gradient:
        """The same of a problem that steers others: differences of its loss, those others solved again each time."""
        sign = -1.0 if self._problems[name].optimizer.param_groups[0].get("maximize") else 1.0
        within = self._within(name)

        def value(row: Tensor) -> float:
            at = self._solved(within, {**values, name: row})
            loss = self._views.loss(name, self._views.history(name).last, self._put_in(at))
            return float(loss.detach())

        def slope(row: Tensor) -> Tensor:
            h = STENCIL * max(1.0, float(row.norm()))
            parts = []
            for unit in torch.eye(len(row), dtype=row.dtype, device=row.device):
                near, far = (value(row + s * unit) - value(row - s * unit) for s in (h, 2 * h))
                parts.append((8 * near - far) / (12 * h))
            return self._with_decay(name, sign * row.new_tensor(parts), row)

        return slope

    def _with_decay(self, name: str, slope: Tensor, row: Tensor) -> Tensor:
        decay = self._problems[name].update.decay
        if decay is None:
            return slope
        theta = self._shaped(name, row)
        return slope + torch.cat([(wd * t).reshape(-1) for wd, t in zip(decay, theta, strict=True)])

    def _put_in(self, values: Mapping[str, Tensor]) -> dict[str, Vector]:
        return {name: self._shaped(name, row) for name, row in values.items()}

    def _shaped(self, name: str, row: Tensor) -> Vector:
        return vectors.shaped(row, self._views.theta(name))

    def _row(self, name: str) -> Tensor:
        theta = self._views.history(name).before or self._views.theta(name)
        return vectors.flat(tuple(t.detach() for t in theta))
