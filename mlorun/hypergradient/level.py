"""One level of the program as an estimator sees it: a recorded problem, a point, and the loss's derivatives there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.inner_loop import Values
from mlorun.hypergradient.recorded import RecordedProblem
from mlorun.hypergradient.stop_gradients import StopGradients
from mlorun.hypergradient.trajectory import Trajectory
from mlorun.hypergradient.vectors import Vector

# takes a number, (), about the call at hand, by its name
Report = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class UpperLoss:
    """F as a function of one level: its own dependence, and to first order what comes through other levels.

    loss        F with parameters put in
    direct      dF/dtheta by F's own reading of the level; None where F does not read it
    cotangent   v, which has in it what comes through other levels too
    """

    loss: Callable[[Values], Tensor]
    direct: Vector | None
    cotangent: Vector

    def at(self, name: str, theta: Vector, lam: Values) -> Tensor:
        """F, (), with theta of the level `name` and lam put in."""
        if self.direct is None:
            return vectors.inner(self.cotangent, theta)
        loss = self.loss({**lam, name: theta})
        if self.direct is self.cotangent:
            return loss
        return loss + vectors.inner(vectors.add(self.cotangent, self.direct, alpha=-1.0), theta)


class Level:
    """theta*(lam) = argmin over theta of loss(theta, lam), at the point of the problem's last step.

    theta    the point; detached, shapes of the problem's trainable parameters
    lam      live parameters of each problem that this loss reads and somebody differentiates in: the upper problem at
             hand, and the lower optima between it and this level
    report   where a number, (), about this call goes; None where nobody asks

    Where other problems answer theta, the loss is the total one, in which their optima are functions of theta and lam.
    """

    def __init__(
        self,
        problem: RecordedProblem,
        upper: UpperLoss | None = None,
        report: Report | None = None,
        answers: Callable[[Values], Values] | None = None,
    ) -> None:
        self.name = problem.name
        self.theta = problem.point
        self.lam = dict(problem.lam)
        self.report = report
        self._problem = problem
        self._upper = upper
        self._answers = answers
        self._graph: tuple[Vector, Vector] | None = None
        self._differences = False

    @property
    def is_nested(self) -> bool:
        """Whether other problems answer theta."""
        return self._answers is not None

    @cached_property
    def trajectory(self) -> Trajectory:
        """The updates of the inner loop so far, for an estimator that needs them."""
        return Trajectory(self._problem)

    @property
    def tangents(self) -> Any:
        """What the estimator's `propagate` made of the inner loop so far."""
        return self._problem.tangents

    @property
    def decay(self) -> tuple[Tensor, ...] | None:
        """Weight decay that the optimizer adds to the gradient (L2 form), () each; None where it adds nothing."""
        return self._problem.update.decay

    @property
    def learning_rates(self) -> tuple[Tensor, ...]:
        """Of the optimizer's last step where the point is before it, else of its next one; () for each parameter."""
        return self._problem.learning_rates

    @property
    def momenta(self) -> tuple[Tensor, ...]:
        """Momentum of the optimizer now, () for each parameter; 0 where it has none."""
        return self._problem.update.momenta

    @property
    def mean_gradient(self) -> Vector:
        """The optimizer's running mean of gradients, up to a factor: momentum of SGD, first moment of Adam.

        Where it keeps none, the gradient at theta.
        """
        kept = self._problem.update.mean_gradient
        return self.gradient if kept is None else tuple(m.to(t.dtype) for m, t in zip(kept, self.theta, strict=True))

    def precondition(self, x: Vector) -> Vector:
        """D x, with D = -d(theta')/d(gradient), a diagonal, of the step that the optimizer would take next.

        Gradient descent: D = lr. The gradient is evaluated again at theta; the optimizer's state is the
        present one, after the last step. Clipping is left out. Raises ConfigError for an optimizer whose step
        is not registered.
        """
        return self._problem.update.precondition(self.theta, self.gradient, x)

    def loss(self, theta: Vector, lam: Values | None = None) -> Tensor:
        """The loss without the optimizer's weight decay, (), with theta (and lam, if given) put in."""
        values: Values = {self.name: theta, **(lam or {})}
        return self._problem.loss(values if self._answers is None else self._answers(values))

    @cached_property
    def _stops(self) -> StopGradients:
        return StopGradients(lambda: self.loss(vectors.leaves(self.theta)))

    def held_loss(self, theta: Vector, lam: Values | None = None) -> Tensor:
        """`loss`, with what it stops gradients of as it is at the level's own point.

        theta and lam must require gradients.
        """
        stops = self._stops
        with stops.held():
            return self.loss(theta, lam)

    def in_double(self) -> Level | None:
        """The same in float64, without anybody above; None where the loss does not run in float64."""
        problem = self._problem.in_double()
        return None if problem is None else Level(problem)

    def moved(self, move: Callable[[RecordedProblem], RecordedProblem]) -> Level:
        """The level of another problem made of this one's, without anybody above."""
        return Level(move(self._problem))

    def upper_loss(self, theta: Vector, lam: Values | None = None) -> Tensor:
        """F as a function of this level alone, (): dF/dtheta at the level's own theta is the v that came with it.

        The loss of the problem above on its own batch, where it reads this problem, with theta (and lam, if given)
        put in; what reaches this level through others enters to first order.
        """
        assert self._upper is not None, f"nobody is above {self.name}"
        return self._upper.at(self.name, theta, lam or {})

    def gradient_graph(self) -> tuple[Vector, Vector]:
        """(theta as leaves, d loss / d theta as a graph over theta and lam), built once for all products."""
        if self._graph is None:
            leaves = vectors.leaves(self.theta)
            self._graph = leaves, derivatives.gradient(self.loss(leaves), leaves, create_graph=True)
        return self._graph

    @cached_property
    def gradient(self) -> Vector:
        """d loss / d theta without the optimizer's weight decay, outside of any graph. One pass."""
        if self._graph is not None:
            return vectors.detach(self._graph[1])
        return self._gradient_at(self.theta)

    def hvp(self, x: Vector) -> Vector:
        """(d2 loss / d theta2) x, with the optimizer's weight decay, theta-shaped. By double backward."""
        if self._differences:
            radius = derivatives.difference_radius(self.theta)
            product = derivatives.central_difference(self._held_gradient_at, self.theta, x, radius)
        else:
            leaves, gradient = self.gradient_graph()
            product = vectors.detach(derivatives.pull_back(gradient, leaves, x, retain_graph=True))
        return self.with_decay(product, x)

    def with_decay(self, product: Vector, x: Vector) -> Vector:
        """`product`, and what the optimizer's weight decay makes of x."""
        return product if self.decay is None else vectors.add(product, vectors.scale_each(x, self.decay))

    def take_differences(self) -> None:
        """From now on Hessian products are central differences of gradients, with stop-gradients held: for kernels
        whose double backward is missing or wrong."""
        self._differences = True
        self._graph = None

    def _gradient_at(self, theta: Vector) -> Vector:
        leaves = vectors.leaves(theta)
        return derivatives.gradient(self.loss(leaves), leaves)

    def _held_gradient_at(self, theta: Vector) -> Vector:
        leaves = vectors.leaves(theta)
        return derivatives.gradient(self.held_loss(leaves), leaves)

    def flat_lam(self) -> Vector:
        """Every lam in one vector, in the order of `lam`."""
        return tuple(t for vector in self.lam.values() for t in vector)

    def split_lam(self, flat: Vector) -> dict[str, Vector]:
        """The inverse of `flat_lam`."""
        return vectors.split(flat, self.lam)
