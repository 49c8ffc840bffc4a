"""Identity solve of a smoothed v: the mean over the last calls, without its part along the lower gradient."""

from __future__ import annotations

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector

# the mean of v, and that of the lower gradient, which is empty where nobody asks for it
Carry = tuple[Vector, Vector]


class Smoothed(Solver):
    """x = s - (<s, m> / <m, m>) m, with s the running mean of v and m that of the lower gradient.

    smoothing    s <- smoothing s + (1 - smoothing) v at every call, from the first v on; m alike. A v from one batch,
                 at parameters that still move, is mostly noise; its mean is not
    orthogonal   leave the part along m out. A step of the lower problem goes along m. So that part of v asks for
                 lower gradients that are longer, or shorter: for another learning rate, and not for another optimum

    Without smoothing and with `orthogonal: false` it is `Identity`. s and m are the carry: a resumed run goes on from
    them.
    """

    curvature = False

    def __init__(self, smoothing: float, orthogonal: bool) -> None:
        if not 0 <= smoothing < 1:
            raise ConfigError("smoothing must lie in [0, 1)", where="smoothing", seen=f"{smoothing}")
        self.smoothing = smoothing
        self.orthogonal = orthogonal

    def __call__(self, level: Level, v: Vector, carry: Carry | None) -> tuple[Vector, Carry]:
        s, m = ((), ()) if carry is None else carry
        s = self._mean(s, v)
        if not self.orthogonal:
            return s, (s, ())
        m = self._mean(m, level.gradient)
        square = vectors.dot(m, m)
        share = vectors.quotient(vectors.dot(s, m), square, square > 0)
        return vectors.add(s, m, alpha=-share), (s, m)

    def _mean(self, before: Vector, new: Vector) -> Vector:
        if not before:
            return vectors.copy(new)
        return vectors.add(vectors.scale(before, self.smoothing), new, alpha=1.0 - self.smoothing)
