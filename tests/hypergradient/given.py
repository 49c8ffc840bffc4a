"""A recorded problem without a program: its loss and its inner loop are given as functions and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mlorun.core.program.update import UpdateRule
from mlorun.hypergradient.inner_loop import InnerLoop, LearnedOptions, RecordedUpdate, Values
from mlorun.hypergradient.vectors import Vector


def no_start(lam: Values) -> Vector | None:
    return None


def no_options(lam: Values) -> LearnedOptions:
    return {}


@dataclass(frozen=True)
class GivenProblem:
    """hypergradient.recorded.RecordedProblem with every step alike.

    given           the loss as a function of every problem's parameters
    given_start     where inner loops start, as a function of lam
    given_options   the optimizer's options that upper problems decide, as a function of lam
    """

    name: str
    point: Vector
    update: UpdateRule
    given: Callable[[Values], Tensor]
    lam: Values = field(default_factory=dict)
    inner_loop: InnerLoop = field(default_factory=lambda: InnerLoop((), whole=True))
    tangents: Any = None
    given_start: Callable[[Values], Vector | None] = no_start
    given_options: Callable[[Values], LearnedOptions] = no_options

    @property
    def learning_rates(self) -> tuple[Tensor, ...]:
        return self.update.learning_rates

    def loss(self, values: Values) -> Tensor:
        return self.given({**self.lam, **values})

    def loss_of(self, update: RecordedUpdate, values: Values) -> Tensor:
        return self.loss(values)

    def in_double(self) -> None:
        return None

    def start(self, lam: Values) -> Vector | None:
        return self.given_start(lam)

    def learned_options(self, lam: Values) -> LearnedOptions:
        return self.given_options(lam)
