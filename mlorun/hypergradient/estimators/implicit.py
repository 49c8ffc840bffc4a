"""Implicit differentiation: a solve times a cross. Most published estimators are a cell of that table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import one_of
from mlorun.hypergradient.crosses.choice import STAND_INS, choose
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.estimator import Hypergradient, Needs, Nested
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.vectors import Vector


@dataclass(frozen=True)
class Carry:
    """What one edge keeps between calls: the cross that works on it, what its solve starts from, and whether Hessian
    products are differences of gradients."""

    cross: Cross
    solve: Any
    differences: bool = False


class Implicit(Hypergradient):
    """-B H^-1 v by the implicit function theorem.

    solve       v to about H^-1 v
    cross       x to B x; what stands in for it where a kernel forbids it is chosen at the first call
    linearize   at the lower parameters "after" the last optimizer step, or "before" it
    nested      on a problem that steers others, second derivatives of its total loss in "full", with the lower optima's
                own derivatives held constant ("gauss_newton"), or those of its own loss alone ("own_loss"). The first
                two take two solves of each problem below a product, and the cross by double backward

    Reports, where asked, norm(H x - v) / norm(v) for a solve that uses H: one Hessian product.
    """

    def __init__(self, solve: Solver, cross: Cross, linearize: Literal["after", "before"], nested: Nested) -> None:
        one_of("linearize", linearize, ("after", "before"))
        one_of("nested", nested, get_args(Nested))
        self.solve = solve
        self.cross = cross
        self.needs = Needs(linearize=linearize, nested=nested, answers="solve")

    def __call__(self, level: Level, v: Vector, carry: Carry | None) -> tuple[dict[str, Vector], Carry]:
        if carry is None:
            cross, differences = choose(self.cross, level, v, curvature=self.solve.curvature)
        else:
            cross, differences = carry.cross, carry.differences
        if differences:
            level.take_differences()
        x, start = self.solve(level, v, carry.solve if carry else None)
        if level.report is not None and self.solve.curvature:
            residual = vectors.add(level.hvp(x), v, alpha=-1.0)
            level.report("residual", vectors.norm(residual) / vectors.norm(v))
        crossed = cross(level, x)
        return {name: vectors.negate(part) for name, part in crossed.items()}, Carry(cross, start, differences)

    def solution(self, level: Level, g: Vector) -> Vector:
        return self.solve(level, g, None)[0]

    def require_size(self, name: str, theta: int, lam: int) -> None:
        self.solve.require_size(name, theta)

    def pack(self, carry: Carry) -> dict[str, Any]:
        stand_in = None if carry.cross is self.cross else type(carry.cross).__name__
        return {"stand_in": stand_in, "solve": carry.solve, "differences": carry.differences}

    def unpack(self, packed: dict[str, Any]) -> Carry:
        cross = self.cross if packed["stand_in"] is None else STAND_INS[packed["stand_in"]]()
        return Carry(cross, packed["solve"], packed["differences"])

    def in_use(self, carry: Any) -> str:
        cross = carry.cross if isinstance(carry, Carry) else self.cross
        text = f"{type(self.solve).__name__} x {type(cross).__name__}"
        stands_in = type(cross) is not type(self.cross)
        if stands_in:
            text += f", in place of {type(self.cross).__name__}"
        if isinstance(carry, Carry) and carry.differences:
            text += ", Hessian products by differences of gradients"
        return text
