"""The oracle suite: closed forms Q1 to Q8 times every estimator times precision, against fixed bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.core.program.schedule import Action, Plan
from mlorun.core.replay.views import default_dtype
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.first_order import FirstOrder
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.penalty import F2SA
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.solvers.fixed_point import FixedPoint
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.indefinite import Minres, NormalConjugateGradient
from mlorun.hypergradient.solvers.neumann import Neumann
from mlorun.hypergradient.solvers.nystrom import Nystrom
from mlorun.hypergradient.solvers.sama import Sama
from mlorun.hypergradient.solvers.smoothed import Smoothed
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.solvers.warm_step import WarmStep
from mlorun.verify.oracles import CASES, NESTED_CASES, Case, SolveOn, maml

LR, STEPS = 0.05, 8  # of every inner loop
SAMPLES = 200


@dataclass(frozen=True)
class Entry:
    """One row: an estimator, what its solve is in matrices, and how far off it may be in float64 and float32.

    bounds    relative errors; None where a precision is left out
    cases     the oracles it is put to, beside the nested ones where it takes second derivatives of a total loss
    nested    in place of `make` on these
    """

    make: Callable[[], Hypergradient]
    solve: SolveOn
    bounds: Mapping[torch.dtype, float]
    cases: tuple[str, ...] = tuple(CASES)
    nested: Callable[[], Hypergradient] | None = None

    def on(self) -> Iterator[tuple[str, Callable[[], Hypergradient]]]:
        """Every oracle, and who is put to it."""
        for case in self.cases:
            yield case, self.make
        if self.make().needs.nested in ("full", "gauss_newton"):
            for case in NESTED_CASES:
                yield case, self.nested or self.make


def bounds(double: float, single: float | None) -> dict[torch.dtype, float]:
    return {torch.float64: double} | ({} if single is None else {torch.float32: single})


def identity(h: Tensor, v: Tensor) -> Tensor:
    return v


def by_lr(h: Tensor, v: Tensor) -> Tensor:
    return LR * v


def nothing(h: Tensor, v: Tensor) -> Tensor:
    return torch.zeros_like(v)


def series(terms: int) -> SolveOn:
    """H^-1 (I - (I - a H)^terms) v: the Neumann series with K = terms - 1, and so many unrolled steps."""

    def solve(h: Tensor, v: Tensor) -> Tensor:
        eye = torch.eye(len(h))
        x: Tensor = torch.linalg.solve(h, (eye - torch.linalg.matrix_power(eye - LR * h, terms)) @ v)
        return x

    return solve


def implicit(
    solve: Callable[[], Solver], cross: Callable[[], Cross] = ForwardOverReverse
) -> Callable[[], Hypergradient]:
    return lambda: Implicit(solve(), cross(), "after", "full")


def central() -> Cross:
    return CentralDifference(0.01, relative=False)


TWO_LEVELS = ("Q1 quadratic", "Q2 ridge", "Q3 weighted ridge", "Q7 logistic")
# largest relative error of the mean of SAMPLES antithetic draws in Q dimensions: 3 sqrt((Q + 1) / SAMPLES), Q = 8
SAMPLING = 3 * (9 / SAMPLES) ** 0.5

ENTRIES: Mapping[str, Entry] = {
    "first_order": Entry(FirstOrder, nothing, bounds(1e-12, 1e-6)),
    "t1t2": Entry(implicit(lambda: Identity(1.0)), identity, bounds(1e-8, 1e-4)),
    # the lower gradient vanishes in these cases: there is no direction to leave out
    "smoothed": Entry(implicit(lambda: Smoothed(0.8, False)), identity, bounds(1e-8, 1e-4)),
    "darts": Entry(implicit(lambda: Identity(1.0), central), identity, bounds(1e-5, 1e-2)),
    "sama": Entry(implicit(Sama, central), by_lr, bounds(1e-5, 1e-2)),
    "neumann": Entry(implicit(lambda: Neumann(STEPS - 1, LR)), series(STEPS), bounds(1e-10, 1e-4)),
    "fixed_point": Entry(implicit(lambda: FixedPoint(STEPS - 1)), series(STEPS), bounds(1e-10, 1e-4)),
    "update_map": Entry(lambda: UpdateMap(STEPS - 1), series(STEPS), bounds(1e-10, 1e-4)),
    "unrolled": Entry(lambda: Unrolled(None, "sqrt"), series(STEPS), bounds(1e-8, 1e-4), (*CASES, "Q6 MAML")),
    "truncated": Entry(lambda: Unrolled(3, "iterates"), series(3), bounds(1e-8, 1e-4)),
    "forward": Entry(lambda: Forward(50, kept=0.0), series(STEPS), bounds(1e-8, 1e-4), (*CASES, "Q6 MAML")),
    # a first inner loop has nothing before it to keep; in Q4 and Q5 lower problems read an optimum, where it is refused
    "real_time": Entry(lambda: Forward(50, kept=1.0), series(STEPS), bounds(1e-8, 1e-4), TWO_LEVELS),
    "cg": Entry(implicit(lambda: ConjugateGradient(30, 0.0, 1e-14, False)), torch.linalg.solve, bounds(1e-8, 1e-3)),
    "minres": Entry(implicit(lambda: Minres(30, 0.0, 0.0)), torch.linalg.solve, bounds(1e-8, 1e-3)),
    "normal_cg": Entry(implicit(lambda: NormalConjugateGradient(30, 0.0, 0.0)), torch.linalg.solve, bounds(1e-8, 1e-2)),
    "nystrom": Entry(implicit(lambda: Nystrom(5, 1e-7, 0)), torch.linalg.solve, bounds(1e-6, None)),
    "soba": Entry(
        implicit(lambda: WarmStep(0.03, 1500, 0.0)),
        torch.linalg.solve,
        bounds(1e-8, None),
        nested=implicit(lambda: WarmStep(0.4, 60, 0.0)),  # its solves stand inside each other there
    ),
    "exact": Entry(implicit(lambda: Exact(0.0, 100), DoubleBackward), torch.linalg.solve, bounds(1e-8, 1e-4)),
    "f2sa": Entry(lambda: F2SA(1e4, 0.0, 1500, 0.03, True), torch.linalg.solve, bounds(1e-2, None)),
    "evolution": Entry(lambda: Evolution(SAMPLES, 1e-3, 0), series(STEPS), bounds(SAMPLING, None), (*CASES, "Q6 MAML")),
}


@dataclass(frozen=True)
class Cell:
    """One cell of the table, and how far its estimator is from the closed form, by its design."""

    estimator: str
    case: str
    dtype: torch.dtype
    error: float
    bound: float
    by_design: float
    seconds: float

    @property
    def holds(self) -> bool:
        return self.error <= self.bound


def cells() -> Iterator[Cell]:
    """Every cell, an estimator at a time. The default dtype is put back."""
    for dtype in (torch.float64, torch.float32):
        with default_dtype(dtype):
            made = {name: make() for name, make in {**CASES, "Q6 MAML": maml, **NESTED_CASES}.items()}
            for name, entry in ENTRIES.items():
                if dtype not in entry.bounds:
                    continue
                for case, make in entry.on():
                    yield _cell(name, replace(entry, make=make), case, made[case], dtype)


def _cell(name: str, entry: Entry, title: str, case: Case, dtype: torch.dtype) -> Cell:
    start = time.perf_counter()
    got = hypergradient(case, entry.make)
    seconds = time.perf_counter() - start
    exact = case.exact()
    wanted = exact if case.start else case.expected(entry.solve)
    return Cell(name, title, dtype, relative(got, wanted), entry.bounds[dtype], relative(got, exact), seconds)


def hypergradient(case: Case, make: Callable[[], Hypergradient], lr: float = LR, steps: int = STEPS) -> Tensor:
    """Through the engine: an inner loop of every lower problem, then the gradient of the upper one.

    The lower problems start at their optimum, where gradient descent stays; `start` cases are one step from it.
    """
    below = case.graph.below(case.upper)
    loop = [
        Action(low, starts=t == 0)
        for low in case.graph.order
        if low in below
        for t in range(1 if case.start else steps)
    ]
    engine = Engine(case.problems(make, lr), case.graph, train_iters=1, plan=Plan((), (tuple(loop),)))
    for _ in engine.steps():
        pass
    return engine.gradient(case.upper)[0]


def relative(got: Tensor, wanted: Tensor) -> float:
    """norm(got - wanted) / norm(wanted); the norm of what was got where 0 was wanted."""
    length = float(wanted.norm())
    return float((got - wanted).norm()) / (length or 1.0)
