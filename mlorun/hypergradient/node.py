"""One problem below an upper one, as a sweep meets it: how it is differentiated through, and who answers it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from mlorun.errors import GraphError
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.crosses.choice import fault_of_double_backward, fault_of_third_derivatives
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.level import Level, Report, UpperLoss
from mlorun.hypergradient.lower_optima import LowerOptima, LowerOptimum
from mlorun.hypergradient.recorded import RecordedProblem

log = logging.getLogger("mlorun.hypergradient")

LARGEST_RESIDUAL = 0.1
# what to choose instead, and what it does
OWN_LOSS = "own_loss, which takes the problems below for constants, and can take differences of gradients"
GAUSS_NEWTON = "gauss_newton, which leaves third derivatives out"


@dataclass(frozen=True)
class Node:
    """One problem.

    below   the problems whose optima answer this one's parameters, each after those that it depends on; empty where it
            is differentiated by its own loss alone
    """

    problem: RecordedProblem
    estimate: Hypergradient
    below: tuple[Node, ...] = ()

    def level(self, upper: UpperLoss | None = None, report: Report | None = None) -> Level:
        """The problem as its estimator sees it; of its total loss, where others answer it."""
        optima = self._optima()
        return Level(self.problem, upper, report, LowerOptima(optima) if optima else None)

    def check(self) -> None:
        """Raise GraphError where second derivatives of the total loss go through a kernel that has none, or wrong ones;
        log every problem below whose solve is far from one, since they are as far off."""
        if not self.below:
            return
        for node in (self, *self.below):
            level = Level(node.problem)
            fault = fault_of_double_backward(level, vectors.zeros_like(level.theta))
            if fault is not None:
                raise _wrong_kernel(self.problem.name, level.name, f"whose double backward {fault}", OWN_LOSS)
        for node in self.below if self.estimate.needs.nested == "full" else ():
            fault = fault_of_third_derivatives(Level(node.problem))
            if fault is not None:
                name = node.problem.name
                raise _wrong_kernel(self.problem.name, name, f"whose third derivative {fault}", GAUSS_NEWTON)
        self._check_solves()

    def _check_solves(self) -> None:
        optima = self._optima()
        theta = {optimum.level.name: vectors.leaves(optimum.level.theta) for optimum in optima}
        flat = tuple(t for vector in theta.values() for t in vector)
        cotangents = vectors.split(derivatives.gradient(self.problem.loss(theta), flat), theta)
        for optimum in optima:
            low, g = optimum.level.name, cotangents[optimum.level.name]
            if not vectors.norm(g):
                continue  # the loss does not read it at first hand
            left = float(optimum.residual(g))
            if not left <= LARGEST_RESIDUAL:
                log.warning(
                    "%s: the second derivatives of its total loss solve with %s's Hessian, and %s's hypergradient "
                    "leaves %.0f %% of the right-hand side: they are about as far off. %s.hypergradient=cg with more "
                    "iterations comes nearer",
                    self.problem.name,
                    low,
                    low,
                    100 * left,
                    low,
                )

    def _optima(self) -> list[LowerOptimum]:
        constant = self.estimate.needs.nested == "gauss_newton"
        return [LowerOptimum(node.level(), node.estimate.solution, constant=constant) for node in self.below]


def _wrong_kernel(name: str, at: str, fault: str, instead: str) -> GraphError:
    return GraphError(
        f"second derivatives of the total loss of {name} go through the loss of {at}, {fault}",
        where=f"problems.{name}.hypergradient.nested",
        seen=f"a kernel in the loss of {at} without right derivatives",
        fix=f"another kernel (attention: the math backend); or {name}.hypergradient.nested={instead}",
    )
