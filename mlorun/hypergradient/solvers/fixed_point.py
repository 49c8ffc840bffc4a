"""Fixed point: the adjoint of gradient descent with momentum, iterated (Grazzi et al. 2020)."""

from __future__ import annotations

from typing import Any

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


class FixedPoint(Solver):
    """z <- (dPhi/dz)' z + (v, 0) for the heavy-ball map Phi, whose fixed point is theta* (arXiv:2006.16218).

    iterations   one Hessian product each

    Phi takes (theta, m) to (theta - lr m', m') with m' = mu m + gradient, lr and mu being the optimizer's own
    (mu = 0 where it has none; Nesterov's variant and dampening have the same fixed point and are left out).
    The adjoint state is z = (p, q). With s = q - lr p the cotangent of m', an iteration is

        p <- p + H s + v,    q <- mu s,

    and the result x = -s. That equals differentiating iterations + 1 unrolled steps at theta*;
    with mu = 0 it is Neumann with a = lr. Converges for lr < 2 (1 + mu) / (largest eigenvalue of H), the
    faster for mu > 0 the worse H is conditioned.
    """

    def __init__(self, iterations: int) -> None:
        at_least("iterations", iterations, 0)
        self.iterations = iterations

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        rates, momenta = level.learning_rates, level.momenta
        p = v
        s = vectors.negate(vectors.scale_each(p, rates))
        for _ in range(self.iterations):
            q = vectors.scale_each(s, momenta)
            p = vectors.add(vectors.add(p, level.hvp(s)), v)
            s = vectors.add(q, vectors.scale_each(p, rates), alpha=-1.0)
        return vectors.negate(s), None
