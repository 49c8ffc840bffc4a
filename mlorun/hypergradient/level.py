"""One level of the program as an estimator sees it: a loss, a point, and the loss's derivatives there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.trajectory import Keep, Trajectory, Values
from mlorun.hypergradient.vectors import Vector

Loss = Callable[[Values], Tensor]
# (theta, lam put in) to the problem above's loss, as far as it depends on this level
Outer = Callable[[Vector, Values], Tensor]
Report = Callable[[str, Tensor], None]
# the ways in which an upper problem acts on a lower one
Channel = Literal["loss", "start", "options", "draws"]
DIFFERENCE_RADIUS = 0.01  # of a perturbation, in a Hessian product by differences
ALL_BUT_DRAWS: frozenset[Channel] = frozenset({"loss", "start", "options"})
# (theta, d loss / d theta, x) to D x
Precondition = Callable[[Vector, Vector, Vector], Vector]


class Level:
    """theta*(lam) = argmin over theta of loss(theta, lam), at the point of the problem's last step.

    theta           the point; detached, shapes of the problem's trainable parameters
    tangents        what an estimator that `follows` made of the updates so far
    report          where a number, (), about this call goes; None between two reports, when nobody asks
    lam             live parameters of each problem that this loss reads and somebody differentiates in: the
                    upper problem at hand, and the lower optima between it and this level

    Evaluations replay the last step: same micro-batches, random numbers, buffers and module modes; they run
    in the parameters' own precision, with autocast off, and leave the program as it was.
    """

    def __init__(
        self,
        name: str,
        theta: Vector,
        lam: Values,
        loss: Loss,
        *,
        decay: Callable[[], tuple[float, ...]],
        learning_rates: Callable[[], tuple[float, ...]],
        momenta: Callable[[], tuple[float, ...]],
        precondition: Precondition,
        outer: Outer | None = None,
        trajectory: Callable[[], Trajectory] | None = None,
        tangents: Any = None,
        report: Report | None = None,
    ) -> None:
        self.name = name
        self.theta = theta
        self.lam = dict(lam)
        self._decay = decay
        self._learning_rates = learning_rates
        self._momenta = momenta
        self._precondition = precondition
        self._loss = loss
        self._outer = outer
        self._trajectory = trajectory
        self.tangents = tangents
        self.report = report
        self._graph: tuple[Vector, Vector] | None = None
        self._differences = False

    @cached_property
    def trajectory(self) -> Trajectory:
        """The updates of the inner loop so far, for an estimator that `keeps` them."""
        assert self._trajectory is not None, f"the inner loop of {self.name} is not kept"
        return self._trajectory()

    def outer(self, theta: Vector, lam: Values | None = None) -> Tensor:
        """F as a function of this level alone, (): dF/dtheta at the level's own theta is the v that came with it.

        The loss of the problem above on its own batch, where it reads this problem, with theta (and lam, if given)
        put in; what reaches this level through others enters to first order.
        """
        assert self._outer is not None, f"nobody is above {self.name}"
        return self._outer(theta, lam or {})

    @cached_property
    def decay(self) -> tuple[float, ...]:
        """Weight decay that the optimizer adds to the gradient (L2 form), one number a parameter."""
        return self._decay()

    @cached_property
    def learning_rates(self) -> tuple[float, ...]:
        """Of the optimizer now, one number a parameter."""
        return self._learning_rates()

    @cached_property
    def momenta(self) -> tuple[float, ...]:
        """Momentum of the optimizer now, one number a parameter; 0 where it has none."""
        return self._momenta()

    def loss(self, theta: Vector, lam: Values | None = None) -> Tensor:
        """The loss without the optimizer's weight decay, (), with theta (and lam, if given) put in."""
        return self._loss({self.name: theta, **(lam or {})})

    def gradient_graph(self) -> tuple[Vector, Vector]:
        """(theta as leaves, d loss / d theta as a graph over theta and lam), built once for all products."""
        if self._graph is None:
            leaves = tuple(t.detach().requires_grad_() for t in self.theta)
            loss = self.loss(leaves)
            grads = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
            self._graph = (leaves, vectors.filled(grads, leaves))
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
            product = self._difference(x)
        else:
            leaves, gradient = self.gradient_graph()
            product = vectors.detach(self.pull_back(gradient, leaves, x))
        if not any(self.decay):
            return product
        return vectors.add(product, vectors.scale_each(x, self.decay))

    def take_differences(self) -> None:
        """From now on Hessian products are central differences of gradients, for kernels without double backward."""
        self._differences = True
        self._graph = None

    def _difference(self, x: Vector) -> Vector:
        length = vectors.norm(x).clamp_min(torch.finfo(torch.float32).tiny ** 0.5)
        eps = DIFFERENCE_RADIUS / length
        shift = vectors.scale(x, eps)
        ahead, behind = (self._gradient_at(vectors.add(self.theta, shift, alpha=sign)) for sign in (1.0, -1.0))
        return vectors.scale(vectors.add(ahead, behind, alpha=-1.0), 0.5 / eps)

    def _gradient_at(self, theta: Vector) -> Vector:
        leaves = tuple(t.detach().requires_grad_() for t in theta)
        return vectors.filled(torch.autograd.grad(self.loss(leaves), leaves, allow_unused=True), leaves)

    def precondition(self, x: Vector) -> Vector:
        """D x, with D = -d(theta')/d(gradient), a diagonal, of the step that the optimizer would take next.

        Gradient descent: D = lr. The gradient is evaluated again at theta; the optimizer's state is the
        present one, after the last step. Clipping is left out. Raises ConfigError for an optimizer whose step
        is not registered.
        """
        return self._precondition(self.theta, self.gradient, x)

    def pull_back(self, outputs: Vector, inputs: Vector, x: Vector) -> Vector:
        """x^T d outputs / d inputs, input-shaped; zeros where an output does not depend on an input."""
        reached = [(y, c) for y, c in zip(outputs, x, strict=True) if y.requires_grad]
        if not reached or not inputs:
            return vectors.zeros_like(inputs)
        ys, cs = zip(*reached, strict=True)
        grads = torch.autograd.grad(ys, inputs, cs, retain_graph=True, allow_unused=True)
        return vectors.filled(grads, inputs)

    def flat_lam(self) -> Vector:
        """Every lam in one vector, in the order of `lam`."""
        return tuple(t for vector in self.lam.values() for t in vector)

    def split_lam(self, flat: Vector) -> dict[str, Vector]:
        """The inverse of `flat_lam`."""
        parts: dict[str, Vector] = {}
        start = 0
        for name, vector in self.lam.items():
            parts[name] = flat[start : start + len(vector)]
            start += len(vector)
        return parts


class Hypergradient(ABC):
    """How the problems above differentiate through one problem's optimum.

    at       the lower parameters after its last step ("post") or before it ("pre")
    sees     by which ways of acting it differentiates: an edge that acts in other ways alone is refused
    keeps    what it wants recorded of the inner loop; None is nothing
    follows  `follow` is called at every update, as it happens
    reads_outer   it calls level.outer, for which the batch of the problem above is kept
    reruns        it runs inner loops again by their own losses alone: not for a problem that steers others itself
    """

    at: Literal["post", "pre"] = "post"
    sees: frozenset[Channel] = frozenset({"loss"})
    keeps: Keep | None = None
    follows: bool = False
    reads_outer: bool = False
    reruns: bool = False

    @abstractmethod
    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], Any]:
        """v = dF/dtheta to ({name: -B H^-1 v for each of level.lam}, carry). The first carry is None."""

    def require_size(self, name: str, theta: int, lam: int) -> None:
        """Raise ConfigError where problem `name` has too many parameters, or too many are differentiated in."""
        return

    def pack(self, carry: Any) -> Any:
        """A carry as numbers, texts, tensors, tuples and dicts, for a checkpoint."""
        return carry

    def unpack(self, packed: Any) -> Any:
        """The inverse of `pack`."""
        return packed

    def in_use(self, carry: Any) -> str:
        """What an edge really uses, for the record; `carry` is what its last call gave."""
        return type(self).__name__

    def follow(self, update: Trajectory, tangents: Any) -> Any:
        """Before each update of a problem whose estimator `follows`: that one update, and what the last call gave.

        `tangents` is None at the first update of each inner loop.
        """
        raise NotImplementedError
