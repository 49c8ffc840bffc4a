"""Records what each step of a differentiated problem saw, and builds the Level that estimators are given."""

from __future__ import annotations

from collections.abc import Set
from functools import partial
from typing import Any

from torch import Tensor

from mlorun.core.decay import l2_decay, learning_rates, momenta
from mlorun.core.problem import Problem
from mlorun.core.world import Moment, World
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level, Values
from mlorun.hypergradient.updates import precondition
from mlorun.hypergradient.vectors import Vector


class Records:
    """The micro-batches of each differentiated problem's last optimizer step, and where that step started."""

    def __init__(self, world: World, differentiated: Set[str]) -> None:
        self._world = world
        self._window: dict[str, list[Moment]] = {name: [] for name in differentiated}
        self._last: dict[str, tuple[Moment, ...]] = {}
        self._before: dict[str, Vector] = {}

    def see(self, name: str, batch: Any) -> None:
        """Call before a loss is evaluated on a micro-batch."""
        if name in self._window:
            self._window[name].append(self._world.moment(batch))

    def before_update(self, problem: Problem) -> None:
        """Call before an optimizer step: the micro-batches seen so far are the ones it is made of."""
        name = problem.name
        if name not in self._window:
            return
        self._last[name] = tuple(self._window[name])
        self._window[name].clear()
        if problem.hypergradient is not None and problem.hypergradient.at == "pre":
            self._before[name] = vectors.copy(problem.theta)

    def level(self, name: str, reads: tuple[str, ...]) -> Level:
        """The level of `name` at its last optimizer step, for the problems in `reads` to differentiate."""
        problem = self._world.problems[name]
        theta = self._before.get(name) or vectors.detach(problem.theta)
        moments = self._last[name]
        world = self._world

        def loss(values: Values) -> Tensor:
            with world.replay():
                return world.loss(name, moments, values)

        return Level(
            name,
            theta,
            {other: world.theta(other) for other in reads},
            loss,
            decay=lambda: l2_decay(problem.optimizer, problem.theta),
            learning_rates=lambda: learning_rates(problem.optimizer, problem.theta),
            momenta=lambda: momenta(problem.optimizer, problem.theta),
            precondition=partial(precondition, problem.optimizer, problem.theta),
        )
