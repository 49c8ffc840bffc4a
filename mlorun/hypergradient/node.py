"""One problem below an upper one, as a sweep meets it: how it is differentiated through, and who answers it."""

from __future__ import annotations

from dataclasses import dataclass

from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.level import Level, Report, UpperLoss
from mlorun.hypergradient.lower_optima import LowerOptima, LowerOptimum
from mlorun.hypergradient.recorded import RecordedProblem


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
        constant = self.estimate.needs.nested == "gauss_newton"
        optima = [LowerOptimum(node.level(), node.estimate.solution, constant=constant) for node in self.below]
        return Level(self.problem, upper, report, LowerOptima(optima) if optima else None)
