"""Implicit differentiation: a solve times a cross. Most published estimators are a cell of that table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.choice import choose
from mlorun.hypergradient.cross import Cross
from mlorun.hypergradient.level import Hypergradient, Level
from mlorun.hypergradient.solve import Solve
from mlorun.hypergradient.vectors import Vector


@dataclass(frozen=True)
class Carry:
    """What one edge keeps between calls: the cross that works on it, and what its solve starts from."""

    cross: Cross
    solve: Any


class Implicit(Hypergradient):
    """-B H^-1 v by the implicit function theorem.

    solve   v to about H^-1 v
    cross   x to B x; what stands in for it where a kernel or a stop-gradient forbids it is chosen at the first call
    at      the point: the lower parameters after its last step ("post"), or before it ("pre")
    """

    def __init__(self, solve: Solve, cross: Cross, at: Literal["post", "pre"]) -> None:
        if at not in ("post", "pre"):
            raise ConfigError(f"at is {at!r}", where="at", fix="post or pre")
        self.solve = solve
        self.cross = cross
        self.at = at

    def __call__(self, level: Level, v: Vector, carry: Carry | None) -> tuple[dict[str, Vector], Carry]:
        x, start = self.solve(level, v, carry.solve if carry else None)
        cross = carry.cross if carry else choose(self.cross, level, x)
        crossed = cross(level, x)
        return {name: vectors.negate(part) for name, part in crossed.items()}, Carry(cross, start)
