"""The presets against closed forms, on one level, a chain of three and a diamond; and the closed forms themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.core.program.schedule import Action
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.neumann import Neumann
from mlorun.run.device import Precision
from mlorun.verify.oracles import CASES, Case, SolveOn, difference_quotient, nested
from tests.hypergradient.resolving import Solved
from tests.hypergradient.stepping import execute

A, TERMS = 0.05, 7


def truncated(h: Tensor, v: Tensor) -> Tensor:
    """H^-1 (I - (I - a H)^(K + 1)) v, the Neumann series in closed form."""
    eye = torch.eye(len(h))
    return torch.linalg.solve(h, (eye - torch.linalg.matrix_power(eye - A * h, TERMS + 1)) @ v)


def identity(h: Tensor, v: Tensor) -> Tensor:
    return v


def cg() -> ConjugateGradient:
    return ConjugateGradient(iterations=20, damping=0.0, tolerance=1e-14, warm_start=False)


PRESETS: dict[str, tuple[Callable[[], Hypergradient], SolveOn, float]] = {
    "darts": (
        lambda: Implicit(Identity(1.0), CentralDifference(0.01, relative=False), "after", "full"),
        identity,
        1e-5,
    ),
    "t1t2": (lambda: Implicit(Identity(1.0), ForwardOverReverse(), "after", "full"), identity, 1e-12),
    "t1t2 by double backward": (lambda: Implicit(Identity(1.0), DoubleBackward(), "after", "full"), identity, 1e-12),
    "neumann": (lambda: Implicit(Neumann(TERMS, A), ForwardOverReverse(), "after", "full"), truncated, 1e-10),
    "neumann by double backward": (
        lambda: Implicit(Neumann(TERMS, A), DoubleBackward(), "after", "full"),
        truncated,
        1e-10,
    ),
    "cg": (lambda: Implicit(cg(), ForwardOverReverse(), "after", "full"), torch.linalg.solve, 1e-8),
    "cg by double backward": (lambda: Implicit(cg(), DoubleBackward(), "after", "full"), torch.linalg.solve, 1e-8),
}


def hypergradient(case: Case, make: Callable[[], Hypergradient]) -> Tensor:
    """Through the engine: every lower problem takes a step of length 0, then the upper one has its gradient taken."""
    problems = case.problems(make)
    for problem in problems:
        for group in problem.optimizer.param_groups:
            group["lr"] = 0.0
    device = torch.device("cpu")
    engine = Engine(problems, case.graph, device=device, precision=Precision("fp32", device), train_iters=1)
    got: list[Tensor] = []
    upper = engine.problems[case.upper]
    upper.grad_callback = lambda: got.append(upper.module.row.grad.clone())  # type: ignore[method-assign]
    execute(engine, *map(Action, case.graph.order))
    return got[0]


def relative(got: Tensor, reference: Tensor) -> float:
    return ((got - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_its_closed_form(name: str, preset: str) -> None:
    case = CASES[name]()
    make, solve, bound = PRESETS[preset]
    assert relative(hypergradient(case, make), case.expected(solve)) < bound


@pytest.mark.parametrize("name", CASES)
def test_the_closed_form_is_the_difference_quotient_of_solving_again(name: str) -> None:
    case = CASES[name]()
    assert relative(case.exact(), difference_quotient(case)) < 1e-6


@pytest.mark.parametrize("cross", [ForwardOverReverse(), DoubleBackward()])
def test_identity_at_the_parameters_before_a_step_is_that_steps_exact_hypergradient(cross: Cross) -> None:
    case = CASES["Q3 weighted ridge"]()
    lr = 0.03
    lower, upper = case.losses["low"], case.losses["up"]
    lam = case.points["up"].clone().requires_grad_()
    theta = (case.points["low"] + 0.5).requires_grad_()
    (gradient,) = torch.autograd.grad(lower({"up": lam, "low": theta}), theta, create_graph=True)
    stepped = theta - lr * gradient
    (reference,) = torch.autograd.grad(upper({"up": lam, "low": stepped}), lam)

    case = CASES["Q3 weighted ridge"]()
    problems = {
        problem.name: problem for problem in case.problems(lambda: Implicit(Identity("lr"), cross, "before", "full"))
    }
    with torch.no_grad():
        problems["low"].module.row.add_(0.5)
    problems["low"].optimizer.param_groups[0]["lr"] = lr
    device = torch.device("cpu")
    engine = Engine(
        list(problems.values()), case.graph, device=device, precision=Precision("fp32", device), train_iters=1
    )
    got: list[Tensor] = []
    problems["up"].grad_callback = lambda: got.append(problems["up"].module.row.grad.clone())  # type: ignore[method-assign]
    execute(engine, Action("low"), Action("up"))
    assert relative(got[0], reference) < 1e-12


def test_each_edge_may_have_an_estimator_of_its_own() -> None:
    case = CASES["Q4 three levels"]()
    problems = {problem.name: problem for problem in case.problems(PRESETS["cg"][0])}
    problems["fine"].hypergradient = PRESETS["t1t2"][0]()
    device = torch.device("cpu")
    engine = Engine(
        list(problems.values()), case.graph, device=device, precision=Precision("fp32", device), train_iters=1
    )
    for problem in problems.values():
        problem.optimizer.param_groups[0]["lr"] = 0.0
    got: list[Tensor] = []
    problems["s"].grad_callback = lambda: got.append(problems["s"].module.row.grad.clone())  # type: ignore[method-assign]
    execute(engine, *map(Action, case.graph.order))
    solves = iter([identity, torch.linalg.solve])  # fine comes first, in reverse order of execution
    assert relative(got[0], case.expected(lambda h, v: next(solves)(h, v))) < 1e-8


def test_the_nested_closed_form_is_the_derivative_of_the_program_solved_again() -> None:
    case = nested()
    solved = Solved(case.losses, case.graph, case.points)
    assert relative(case.exact(), solved.slope("top")) < 1e-7
    assert relative(case.expected(lambda h, v: v), solved.slope("top")) > 0.1
