"""The seam between the core and the estimators: one problem's last steps, as pure functions of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from mlorun.hypergradient.inner_loop import InnerLoop, Iterate, LearnedOptions, Options, RecordedUpdate, Values
from mlorun.hypergradient.vectors import Vector


class PureUpdate(Protocol):
    """What a problem's optimizer does, without doing it. Numbers are () tensors, one a parameter, on its device."""

    @property
    def momenta(self) -> tuple[Tensor, ...]:
        """Of the optimizer now; 0 where it has none."""

    @property
    def mean_gradient(self) -> Vector | None:
        """The optimizer's running mean of its gradients, up to a factor; None where it keeps none."""

    @property
    def decay(self) -> tuple[Tensor, ...] | None:
        """Weight decay that the optimizer adds to the gradient (L2 form); None where it adds nothing."""

    def precondition(self, theta: Vector, gradient: Vector, x: Vector) -> Vector:
        """D x, with D = -d(theta')/d(gradient), a diagonal, of the step that the optimizer would take next.

        Raises ConfigError for an optimizer whose step is not registered.
        """

    def apply(
        self,
        options: Sequence[Options | None],
        iterate: Iterate,
        gradient: Sequence[Tensor | None],
        learned: LearnedOptions,
    ) -> Iterate:
        """One update from its gradient: clipping and the optimizer's step, differentiable in iterate, gradient and
        learned options; `options` as they were recorded."""


class RecordedProblem(Protocol):
    """One problem at its last optimizer step. The core implements it; estimators know nothing else of the core.

    lam      live parameters of each problem that the loss reads and somebody differentiates in: the upper problem at
             hand, and the lower optima between it and this one
    update   what the optimizer does

    Evaluations replay what the steps saw: same micro-batches, random numbers, buffers and module modes; they run in the
    parameters' own precision, with autocast off, and leave the program as it was.
    """

    @property
    def name(self) -> str: ...
    @property
    def lam(self) -> Values: ...
    @property
    def update(self) -> PureUpdate: ...
    @property
    def point(self) -> Vector:
        """The parameters after the last optimizer step, or before it, as the estimator needs; detached."""

    @property
    def learning_rates(self) -> tuple[Tensor, ...]:
        """Of the optimizer at the point, () for each parameter: of the last step, or of the next one."""

    @property
    def inner_loop(self) -> InnerLoop:
        """The updates of the inner loop so far, as far as the estimator needs them."""

    @property
    def tangents(self) -> Any:
        """What the estimator's `propagate` made of the inner loop so far."""

    def loss(self, values: Values) -> Tensor:
        """The mean loss over the micro-batches of the last optimizer step, (), with `values` put in."""

    def loss_of(self, update: RecordedUpdate, values: Values) -> Tensor:
        """The mean loss over the micro-batches of a recorded update, (), with `values` put in."""

    def start(self, lam: Values) -> Vector | None:
        """Where inner loops start, as a function of lam; None where no upper problem decides it."""

    def in_double(self) -> RecordedProblem | None:
        """The same last step in float64, without the inner loop; None where the loss does not run in float64."""

    def learned_options(self, lam: Values) -> LearnedOptions:
        """The optimizer's options that upper problems decide, as functions of lam."""
