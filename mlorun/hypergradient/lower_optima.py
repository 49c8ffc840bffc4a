"""Lower optima as functions of what they depend on, so that a problem that steers others has a total loss.

That loss is Phi(mu, lam) = L(mu, beta*(mu, lam), lam), with beta*(mu, lam) the optimum of the problem below. Here beta*
is a function that autograd differentiates by the implicit function theorem, as often as it is asked to. With
H = d2 L_B / d beta2 and C = d2 L_B / d(mu, lam) d beta,

    (d beta* / d(mu, lam))' g = -C w,    H w = g,

where C is a function of beta* and of (mu, lam) again, and w differentiates as a solution does, dw = H^-1 (dg - dH w).
A second derivative of Phi along q is then that of the Lagrangian L - w'dL_B/dbeta along (q, J q), J = d beta* / d mu,
pulled back by J: two solves of the problem below, and third derivatives of its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.inner_loop import Values
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector, detach

# (level, g) to about H^-1 g
Solve = Callable[[Level, Vector], Vector]


class LowerOptimum:
    """The optimum of one problem, as a function of the parameters in `level.lam`.

    level      the problem at its point, which is the function's value, whatever the parameters
    solve      stands for H^-1, taken for symmetric
    constant   J is held constant (Gauss-Newton): no derivative of C, nor of H
    """

    def __init__(self, level: Level, solve: Solve, *, constant: bool) -> None:
        self.level = level
        self._solve = solve
        self._constant = constant

    def at(self, values: Values) -> Vector:
        """theta*, a function of these parameters; of live ones for a problem that `values` leave out."""
        inputs = [t for name, live in self.level.lam.items() for t in values.get(name, live)]
        return derivatives.with_pull_back(self.level.theta, inputs, self._answer)

    def residual(self, g: Vector) -> Tensor:
        """norm(H w - g) / norm(g) of the solve, (): how far second derivatives are from those of the optimum."""
        left = vectors.add(self.level.hvp(detach(self._solve(self.level, g))), g, alpha=-1.0)
        return vectors.norm(left) / vectors.norm(g)

    def _answer(self, theta: Vector, inputs: Vector, g: Vector) -> Sequence[Tensor]:
        """-C w: the cotangents of the parameters."""
        again = torch.is_grad_enabled()
        with torch.enable_grad():
            theta, inputs = self._at(theta), self._at(inputs)
            w = self._solution(theta, inputs, g)
            pulled = derivatives.pull_back(self._gradient(theta, inputs), inputs, w, create_graph=again)
            return tuple(-t for t in pulled)

    def _solution(self, theta: Vector, inputs: Vector, g: Vector) -> Vector:
        """w, as a function of everything it depends on."""
        w = detach(self._solve(self.level, detach(g)))
        if self._constant:
            return derivatives.with_pull_back(w, g, lambda _w, _g, cotangent: self._solution(theta, inputs, cotangent))
        return derivatives.with_pull_back(w, (*g, *theta, *inputs), self._resolve)

    def _resolve(self, w: Vector, inputs: Vector, cotangent: Vector) -> Sequence[Tensor]:
        """The cotangents of g, theta and the parameters: v with H v = cotangent, and -d(v'H w)."""
        again = torch.is_grad_enabled()
        theta, others = inputs[len(w) : 2 * len(w)], inputs[2 * len(w) :]
        with torch.enable_grad():
            theta, others = self._at(theta), self._at(others)
            v = self._solution(theta, others, cotangent)
            curved = derivatives.pull_back(self._gradient(theta, others), theta, w, create_graph=True)
            turned = derivatives.pull_back(curved, (*theta, *others), v, create_graph=again)
            return (*v, *(-t for t in turned))

    def _gradient(self, theta: Vector, inputs: Vector) -> Vector:
        rest = iter(inputs)
        lam = {name: tuple(next(rest) for _ in live) for name, live in self.level.lam.items()}
        return derivatives.gradient(self.level.loss(theta, lam), theta, create_graph=True)

    def _at(self, tensors: Vector) -> Vector:
        """The same, to be differentiated in on their own: what one depends on by another is not followed."""
        return tuple(
            t.detach().requires_grad_() if self._constant or not t.requires_grad else t.view_as(t) for t in tensors
        )


class LowerOptima:
    """The optima of several problems, each after those that it depends on."""

    def __init__(self, optima: Sequence[LowerOptimum]) -> None:
        self.optima = tuple(optima)

    def __call__(self, values: Values) -> Values:
        """`values`, and every optimum as a function of them."""
        complete = dict(values)
        for optimum in self.optima:
            complete[optimum.level.name] = optimum.at(complete)
        return complete
