"""Identity solve of a smoothed v: the mean over the last calls, without its part along the lower problem's momentum."""

from __future__ import annotations

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


class Smoothed(Solver):
    """x = s - (<s, m> / <m, m>) m, with s the running mean of v and m that of lower gradients in the optimizer.

    smoothing    s <- smoothing s + (1 - smoothing) v at every call, from the first v on. A v from one batch, at
                 parameters that still move, is mostly noise; its mean is less so
    orthogonal   leave the part along m out. The lower problem moves along m. So that part of v asks for lower gradients
                 that are longer, or shorter: for another learning rate, and not for another optimum

    m is the momentum of SGD or the first moment of Adam; the gradient of the batch where the optimizer keeps neither.
    Without smoothing and with `orthogonal: false` it is `Identity`. s is the carry: a resumed run goes on from it.
    """

    curvature = False

    def __init__(self, smoothing: float, orthogonal: bool) -> None:
        if not 0 <= smoothing < 1:
            raise ConfigError("smoothing must lie in [0, 1)", where="smoothing", seen=f"{smoothing}")
        self.smoothing = smoothing
        self.orthogonal = orthogonal

    def __call__(self, level: Level, v: Vector, carry: Vector | None) -> tuple[Vector, Vector]:
        if carry is None:
            s = vectors.copy(v)
        else:
            s = vectors.add(vectors.scale(carry, self.smoothing), v, alpha=1.0 - self.smoothing)
        if not self.orthogonal:
            return s, s
        m = level.mean_gradient
        square = vectors.dot(m, m)
        share = vectors.quotient(vectors.dot(s, m), square, square > 0)
        return vectors.add(s, m, alpha=-share), s
