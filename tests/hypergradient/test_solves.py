"""Every solve against a closed form, in float64: alone on one level, and through a chain of three."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, AdamW, Muon, Optimizer, RMSprop

from mlorun.core.adjoint import Adjoint
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.pure_steps import pure_step_of
from mlorun.core.program.update import UpdateRule
from mlorun.core.replay.functional import FunctionalProgram
from mlorun.core.replay.recorder import Recorder
from mlorun.errors import ConfigError, RunError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.solvers.fixed_point import FixedPoint
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.indefinite import Minres, NormalConjugateGradient
from mlorun.hypergradient.solvers.neumann import Neumann
from mlorun.hypergradient.solvers.nystrom import Nystrom
from mlorun.hypergradient.solvers.sama import Sama
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.solvers.spectrum import largest_eigenvalue, start_vector
from mlorun.hypergradient.solvers.warm_step import WarmStep
from mlorun.hypergradient.vectors import Vector
from tests.hypergradient.given import GivenProblem

SIZES = (2, 3)  # a level's parameters: two tensors, P = 5 entries
P = sum(SIZES)
LR = 0.2


def with_eigenvalues(values: Tensor) -> Tensor:
    basis: Tensor = torch.linalg.qr(torch.randn(len(values), len(values))).Q
    return basis @ torch.diag(values) @ basis.T


def definite(size: int = P) -> Tensor:
    """Symmetric, eigenvalues from 0.5 to 4."""
    return with_eigenvalues(torch.linspace(0.5, 4, size))


def indefinite() -> Tensor:
    """Symmetric, two eigenvalues negative."""
    return with_eigenvalues(torch.tensor([-3.0, -0.7, 0.5, 1.3, 4.0]))


def split(row: Tensor) -> Vector:
    return tuple(torch.split(row, list(SIZES)))


def level_of(
    loss: Callable[[Tensor], Tensor],
    theta: Tensor | None = None,
    *,
    decay: float = 0.0,
    momentum: float = 0.0,
    optimizer: Optimizer | None = None,
) -> Level:
    """A level whose loss is a function of one row of P parameters."""
    at = split(torch.zeros(P) if theta is None else theta)
    if optimizer is None:
        optimizer = SGD([nn.Parameter(t) for t in at], lr=LR, momentum=momentum, weight_decay=decay)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    problem = GivenProblem("lower", at, rule(optimizer, parameters), lambda values: loss(torch.cat(values["lower"])))
    return Level(problem)


def rule(optimizer: Optimizer, parameters: Sequence[nn.Parameter]) -> UpdateRule:
    return UpdateRule(tuple(parameters), optimizer, None, None)


def quadratic(matrix: Tensor, **options: Any) -> Level:
    return level_of(lambda theta: theta @ matrix @ theta / 2, **options)


def curved(theta: Tensor) -> Tensor:
    """Convex, not quadratic."""
    return torch.logsumexp(theta * torch.arange(1.0, P + 1), 0) + (theta**4).sum() + theta @ theta / 2


def solved(solve: Solver, level: Level, v: Tensor, carry: Any = None) -> Tensor:
    return vectors.flat(solve(level, split(v), carry)[0])


def error(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm())


# exact


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_exact_is_the_solve_with_the_hessian_that_autograd_builds(decay: float) -> None:
    theta, v = torch.randn(P), torch.randn(P)
    hessian = torch.autograd.functional.hessian(curved, theta)  # type: ignore[no-untyped-call]
    hessian = hessian + decay * torch.eye(P)
    got = solved(Exact(damping=0.1, largest_size=P), level_of(curved, theta, decay=decay), v)
    assert error(got, torch.linalg.solve(hessian + 0.1 * torch.eye(P), v)) < 1e-12


def test_exact_solves_an_indefinite_hessian() -> None:
    matrix, v = indefinite(), torch.randn(P)
    assert error(solved(Exact(0.0, P), quadratic(matrix), v), torch.linalg.solve(matrix, v)) < 1e-12


def test_exact_refuses_a_level_that_is_too_large_and_names_the_way_out() -> None:
    with pytest.raises(ConfigError, match="lower has 5 parameters") as raised:
        solved(Exact(0.0, P - 1), quadratic(definite()), torch.ones(P))
    assert "largest_size: 4" in str(raised.value)
    assert "problems.lower.hypergradient.solve.largest_size" in str(raised.value)


def test_exact_refuses_a_singular_hessian_and_asks_for_damping() -> None:
    matrix = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0]))
    with pytest.raises(RunError, match="singular") as raised:
        solved(Exact(0.0, P), quadratic(matrix), torch.ones(P))
    assert "damping" in str(raised.value)


# nystrom


def test_nystrom_with_every_column_and_vanishing_damping_is_exact() -> None:
    for matrix in (definite(), indefinite()):
        v = torch.randn(P)
        got = solved(Nystrom(columns=P, rho=1e-7, seed=0), quadratic(matrix), v)
        assert error(got, torch.linalg.solve(matrix, v)) < 1e-6


def test_nystrom_with_every_column_is_the_damped_solve_at_any_damping() -> None:
    matrix, v = definite(), torch.randn(P)
    got = solved(Nystrom(columns=P + 3, rho=0.1, seed=0), quadratic(matrix), v)
    assert error(got, torch.linalg.solve(matrix + 0.1 * torch.eye(P), v)) < 1e-10


def test_nystrom_inverts_its_own_low_rank_approximation() -> None:
    factor, v = torch.randn(P, 2), torch.randn(P)
    matrix = factor @ factor.T  # rank 2: any two columns are enough, and any three are dependent
    exact = torch.linalg.solve(matrix + 0.1 * torch.eye(P), v)
    for columns in (2, 3):
        assert error(solved(Nystrom(columns, 0.1, seed=0), quadratic(matrix), v), exact) < 1e-8


def test_nystrom_draws_by_its_seed_and_its_call_and_leaves_the_random_numbers_alone() -> None:
    level, v = quadratic(definite()), torch.randn(P)
    before = torch.get_rng_state()
    solve = Nystrom(columns=2, rho=0.1, seed=0)
    first, carry = solve(level, split(v), None)
    second, _ = solve(level, split(v), carry)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(vectors.flat(first), solved(Nystrom(2, 0.1, seed=0), level, v))
    assert torch.equal(vectors.flat(second), solved(Nystrom(2, 0.1, seed=0), level, v, carry))
    assert not torch.equal(vectors.flat(first), vectors.flat(second))
    assert not torch.equal(vectors.flat(first), solved(Nystrom(2, 0.1, seed=1), level, v))


# minres and normal_cg

INDEFINITE: tuple[Solver, ...] = (Minres(P, 0.0, 0.0), NormalConjugateGradient(2 * P, 0.0, 0.0))


@pytest.mark.parametrize("solve", INDEFINITE, ids=lambda solve: type(solve).__name__)
def test_an_indefinite_hessian_is_solved_exactly_where_cg_stops(solve: Solver) -> None:
    matrix, v = indefinite(), torch.randn(P)
    exact = torch.linalg.solve(matrix, v)
    assert error(solved(solve, quadratic(matrix), v), exact) < 1e-8
    assert error(solved(ConjugateGradient(P, 0.0, 0.0, False), quadratic(matrix), v), exact) > 0.1


@pytest.mark.parametrize("kind", [Minres, NormalConjugateGradient], ids=lambda kind: kind.__name__)
def test_more_iterations_than_needed_do_no_harm(kind: type[Minres] | type[NormalConjugateGradient]) -> None:
    matrix, v = indefinite(), torch.randn(P)
    got = solved(kind(100, 0.0, 1e-12), quadratic(matrix), v)
    assert error(got, torch.linalg.solve(matrix, v)) < 1e-8
    assert torch.equal(solved(kind(10, 0.0, 0.0), quadratic(matrix), torch.zeros(P)), torch.zeros(P))
    assert not solved(kind(10, 0.0, 0.0), quadratic(torch.zeros(P, P)), v).any()


@pytest.mark.parametrize("solve", INDEFINITE, ids=lambda solve: type(solve).__name__)
def test_the_residual_never_grows(solve: Solver) -> None:
    matrix, v = indefinite(), torch.randn(P)
    lengths = []
    for iterations in range(1, P + 1):
        shorter = type(solve)(iterations, 0.0, 0.0)  # type: ignore[call-arg]
        lengths.append(float((matrix @ solved(shorter, quadratic(matrix), v) - v).norm()))
    assert lengths == sorted(lengths, reverse=True)


def test_damping_is_of_the_system_that_each_solves() -> None:
    matrix, v, eye = indefinite(), torch.randn(P), torch.eye(P)
    minres = solved(Minres(P, 0.2, 0.0), quadratic(matrix), v)
    assert error(minres, torch.linalg.solve(matrix + 0.2 * eye, v)) < 1e-8
    normal = solved(NormalConjugateGradient(2 * P, 0.2, 0.0), quadratic(matrix), v)
    assert error(normal, torch.linalg.solve(matrix @ matrix + 0.2 * eye, matrix @ v)) < 1e-8


def conjugate_gradient(iterations: int, tolerance: float, warm_start: bool = False) -> ConjugateGradient:
    return ConjugateGradient(iterations, 0.0, tolerance, warm_start)


@pytest.mark.parametrize("make", [conjugate_gradient, lambda iterations, tolerance: Minres(iterations, 0.0, tolerance)])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_solve_stops_at_the_first_residual_below_its_tolerance(
    make: Callable[[int, float], Solver], count: int
) -> None:
    matrix, v = definite(), torch.randn(P)
    after = solved(make(count, 0.0), quadratic(matrix), v)
    tolerance = 1.001 * float((matrix @ after - v).norm() / v.norm())
    assert torch.equal(solved(make(100, tolerance), quadratic(matrix), v), after)


def test_conjugate_gradients_that_start_warm_go_on_from_call_to_call() -> None:
    matrix, v = definite(), torch.randn(P)
    exact, errors = torch.linalg.solve(matrix, v), []
    for warm_start in (False, True):
        carry = None
        for _ in range(60):
            x, carry = conjugate_gradient(1, 0.0, warm_start)(quadratic(matrix), split(v), carry)
        errors.append(error(vectors.flat(x), exact))
    assert errors[0] > 0.1
    assert errors[1] < 1e-6


# soba


def test_a_warm_step_is_its_formula_and_its_vector_the_carry() -> None:
    matrix, v, u = definite(), torch.randn(P), torch.randn(P)
    x, (kept, _) = WarmStep(rho=0.1, steps=1, damping=0.0)(quadratic(matrix), split(v), (split(u), None))
    assert error(vectors.flat(x), u - 0.1 * (matrix @ u - v)) < 1e-14
    assert torch.equal(vectors.flat(kept), vectors.flat(x))
    damped = solved(WarmStep(rho=0.1, steps=1, damping=0.7), quadratic(matrix), v, (split(u), None))
    assert error(damped, u - 0.1 * (matrix @ u + 0.7 * u - v)) < 1e-14
    scaled, _ = WarmStep(rho="lr", steps=1, damping=0.0)(quadratic(matrix), split(v), (split(u), None))
    assert error(vectors.flat(scaled), u - LR * (matrix @ u - v)) < 1e-14


def test_warm_steps_converge_to_exact_when_all_else_stands_still() -> None:
    matrix, v = definite(), torch.randn(P)
    level, carry = quadratic(matrix), None
    for _ in range(200):
        x, carry = WarmStep(rho=0.3, steps=1, damping=0.0)(level, split(v), carry)
    assert error(vectors.flat(x), torch.linalg.solve(matrix, v)) < 1e-10
    several = solved(WarmStep(rho=0.3, steps=200, damping=0.0), level, v)
    assert torch.equal(several, vectors.flat(x))


def test_an_automatic_rho_is_one_over_the_largest_eigenvalue_whatever_the_scale_of_the_hessian() -> None:
    matrix, v, u = 1000.0 * definite(), torch.randn(P), torch.randn(P)
    level, solve, carry = quadratic(matrix), WarmStep("auto", 1, 0.0), (split(u), None)
    for _ in range(20):  # power iteration goes on from call to call
        x, (_, start) = solve(level, split(v), carry)
        carry = split(u), start  # type: ignore[assignment]
    largest = float(torch.linalg.eigvalsh(matrix).max())
    assert error(vectors.flat(x), u - (matrix @ u - v) / largest) < 1e-3


def test_an_automatic_rho_costs_twenty_products_once_and_two_at_later_calls() -> None:
    level, v, carry = quadratic(definite()), torch.randn(P), None
    products: list[int] = []
    hvp = level.hvp

    def counted(x: Vector) -> Vector:
        products[-1] += 1
        return hvp(x)

    level.hvp = counted  # type: ignore[method-assign]
    for _ in range(3):
        products.append(0)
        _, carry = WarmStep("auto", 1, 0.0)(level, split(v), carry)
    assert products == [21, 3, 3]


def test_a_diverging_warm_step_is_named_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    level, v = quadratic(1000.0 * definite()), torch.randn(P)
    with caplog.at_level(logging.WARNING, logger="mlorun.hypergradient"):
        for rho in ("auto", 0.1):
            assert not caplog.records
            solve, carry = WarmStep(rho, 1, 0.0), None  # type: ignore[arg-type, var-annotated]
            for _ in range(10):
                _, carry = solve(level, split(v), carry)
    assert len(caplog.records) == 1
    assert "lower: u of the warm-started solve diverges" in caplog.text
    assert "rho: auto" in caplog.text


# neumann


@pytest.mark.parametrize("terms", [0, 1, 7])
def test_neumann_is_its_truncation_in_closed_form(terms: int) -> None:
    matrix, v = definite(), torch.randn(P)
    power = torch.linalg.matrix_power(torch.eye(P) - LR * matrix, terms + 1)
    truncated = torch.linalg.solve(matrix, v - power @ v)
    assert error(solved(Neumann(terms, "lr"), quadratic(matrix), v), truncated) < 1e-10
    assert error(solved(Neumann(terms, LR), quadratic(matrix), v), truncated) < 1e-10


def test_power_iteration_finds_the_largest_eigenvalue_of_either_sign() -> None:
    for matrix in (definite(), indefinite(), -definite()):
        level = quadratic(matrix)
        size, _ = largest_eigenvalue(level, start_vector(level.theta), 200)
        assert float(size) == pytest.approx(float(torch.linalg.eigvalsh(matrix).abs().max()), rel=1e-6)


def test_an_automatic_step_size_converges_where_lr_diverges_and_starts_again_from_its_carry() -> None:
    matrix, v = 20 * definite(), torch.randn(P)
    exact = torch.linalg.solve(matrix, v)
    solve, level = Neumann(400, "auto"), quadratic(matrix)
    before = torch.get_rng_state()
    x, carry = solve(level, split(v), None)
    assert torch.equal(torch.get_rng_state(), before)
    assert error(vectors.flat(x), exact) < 1e-8
    largest = torch.linalg.eigvalsh(matrix).max()
    u = vectors.flat(carry)
    assert float(u @ matrix @ u / largest) == pytest.approx(1, abs=1e-2)
    again, _ = solve(level, split(v), carry)
    assert error(vectors.flat(again), exact) < 1e-8
    assert error(solved(Neumann(20, "lr"), level, v), exact) > 1


def test_an_automatic_step_size_survives_a_hessian_of_zero() -> None:
    v = torch.randn(P)
    assert error(solved(Neumann(2, "auto"), quadratic(torch.zeros(P, P)), v), 3 * v) < 1e-14


def test_a_diverging_series_is_named_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    level, v = quadratic(20 * definite()), torch.randn(P)
    with caplog.at_level(logging.WARNING, logger="mlorun.hypergradient"):
        solved(Neumann(5, 0.01), level, v)
        assert not caplog.records
        solve = Neumann(5, "lr")
        solved(solve, level, v)
        solved(solve, level, v)
    assert len(caplog.records) == 1
    assert "lower" in caplog.text
    assert "step_size: auto" in caplog.text


# fixed point


def test_a_fixed_point_without_momentum_is_neumann() -> None:
    level, v = quadratic(definite()), torch.randn(P)
    for iterations in (0, 1, 6):
        neumann = solved(Neumann(iterations, "lr"), level, v)
        assert error(solved(FixedPoint(iterations), level, v), neumann) < 1e-12


def test_a_fixed_point_with_momentum_converges_to_exact() -> None:
    matrix, v = definite(), torch.randn(P)
    level = quadratic(matrix, momentum=0.6)
    assert error(solved(FixedPoint(300), level, v), torch.linalg.solve(matrix, v)) < 1e-10
    # lr above 2 / (largest eigenvalue), below 2 (1 + mu) / (largest eigenvalue)
    steep = 3 * matrix
    fast = quadratic(steep, momentum=0.6)
    assert error(solved(FixedPoint(300), fast, v), torch.linalg.solve(steep, v)) < 1e-10
    assert error(solved(FixedPoint(300), quadratic(steep), v), torch.linalg.solve(steep, v)) > 1


def test_a_fixed_point_with_momentum_is_the_adjoint_of_the_unrolled_optimizer() -> None:
    matrix, v, lam = definite(), torch.randn(P), torch.randn(P, requires_grad=True)
    theta = torch.linalg.solve(matrix, lam).detach()  # the optimum of theta'A theta / 2 - lam'theta
    buffer = torch.zeros(P)
    for _ in range(8):
        buffer = 0.6 * buffer + matrix @ theta - lam
        theta = theta - LR * buffer
    (unrolled,) = torch.autograd.grad(theta @ v, lam)
    assert error(solved(FixedPoint(7), quadratic(matrix, momentum=0.6), v), unrolled) < 1e-12


# functional steps, and sama

OPTIMIZERS: dict[str, Callable[[list[Tensor]], Optimizer]] = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "sgd decay": lambda p: SGD(p, lr=0.1, weight_decay=0.2),
    "sgd momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2),
    "sgd dampening": lambda p: SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
    "sgd nesterov": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.2),
    "sgd maximize": lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.2, maximize=True),
    "adam": lambda p: Adam(p, lr=0.1),
    "adam betas": lambda p: Adam(p, lr=0.1, betas=(0.5, 0.7), eps=1e-3, weight_decay=0.2),
    "adam without averages": lambda p: Adam(p, lr=0.1, betas=(0.0, 0.0), eps=0.1),
    "adam maximize": lambda p: Adam(p, lr=0.1, weight_decay=0.2, maximize=True),
    "adam amsgrad": lambda p: Adam(p, lr=0.1, betas=(0.5, 0.5), amsgrad=True),
    "adam decoupled": lambda p: Adam(p, lr=0.1, weight_decay=0.2, decoupled_weight_decay=True),
    "adamw": lambda p: AdamW(p, lr=0.1, weight_decay=0.2),
    "adamw maximize": lambda p: AdamW(p, lr=0.1, weight_decay=0.2, maximize=True),
    "rmsprop": lambda p: RMSprop(p, lr=0.1),
    "rmsprop centered": lambda p: RMSprop(p, lr=0.1, alpha=0.8, centered=True, weight_decay=0.2),
    "rmsprop momentum": lambda p: RMSprop(p, lr=0.1, momentum=0.9, eps=1e-3),
    "rmsprop everything": lambda p: RMSprop(p, lr=0.1, momentum=0.9, centered=True, weight_decay=0.2, maximize=True),
    "adagrad": lambda p: Adagrad(p, lr=0.1),
    "adagrad decay": lambda p: Adagrad(p, lr=0.1, lr_decay=0.3, weight_decay=0.2, initial_accumulator_value=0.4),
    "adagrad maximize": lambda p: Adagrad(p, lr=0.1, eps=1e-3, maximize=True),
}
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


@every_optimizer
def test_a_functional_step_is_the_optimizers_own(make: Callable[[list[Tensor]], Optimizer]) -> None:
    parameter = nn.Parameter(torch.randn(P))
    optimizer = make([parameter])
    theta, state = parameter.detach().clone(), dict(optimizer.state[parameter])
    for _ in range(5):
        gradient = torch.randn(P)
        parameter.grad = gradient.clone()
        theta, state = pure_step_of(optimizer).step(optimizer.param_groups[0], state, theta, gradient)
        optimizer.step()
        assert float((theta - parameter.detach()).abs().max()) < 1e-12
    for key, value in state.items():
        torch.testing.assert_close(value, optimizer.state[parameter][key], rtol=0, atol=1e-12, check_dtype=False)


def after_steps(make: Callable[[list[Tensor]], Optimizer], steps: int) -> tuple[Optimizer, nn.Parameter]:
    parameter = nn.Parameter(torch.randn(P))
    optimizer = make([parameter])
    for _ in range(steps):
        parameter.grad = torch.randn(P)
        optimizer.step()
    return optimizer, parameter


# at Adam's first step the derivative is lr eps / (|g| + eps)^2, next to 0: the bounds are against lr then


@every_optimizer
@pytest.mark.parametrize("steps", [0, 4])
def test_the_preconditioner_is_the_jacobian_of_the_functional_step(
    make: Callable[[list[Tensor]], Optimizer], steps: int
) -> None:
    optimizer, parameter = after_steps(make, steps)
    theta, gradient, x = parameter.detach(), torch.randn(P), torch.randn(P)
    state = optimizer.state.get(parameter, {})

    def step(gradient: Tensor) -> Tensor:
        return pure_step_of(optimizer).step(optimizer.param_groups[0], state, theta, gradient)[0]

    jacobian = torch.autograd.functional.jacobian(step, gradient)  # type: ignore[no-untyped-call]
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    (got,) = rule(optimizer, [parameter]).precondition((theta,), (gradient,), (x,))
    assert float((got + jacobian @ x).norm()) < 1e-12 * max(float(got.norm()), 0.1)


@every_optimizer
@pytest.mark.parametrize("steps", [0, 4])
def test_the_preconditioner_is_the_difference_quotient_of_the_real_optimizer(
    make: Callable[[list[Tensor]], Optimizer], steps: int
) -> None:
    optimizer, parameter = after_steps(make, steps)
    theta, gradient, x = parameter.detach().clone(), torch.randn(P) + 0.1, torch.randn(P)
    kept = copy.deepcopy(optimizer.state_dict())

    def step(gradient: Tensor) -> Tensor:
        fresh = nn.Parameter(theta.clone())
        real = make([fresh])
        real.load_state_dict(copy.deepcopy(kept))
        fresh.grad = gradient
        real.step()
        return fresh.detach()

    (got,) = rule(optimizer, [parameter]).precondition((theta,), (gradient,), (x,))
    quotient = (step(gradient - 1e-6 * x) - step(gradient + 1e-6 * x)) / 2e-6
    assert float((got - quotient).norm()) < 1e-6 * max(float(got.norm()), 0.1)


def test_sama_is_lr_times_v_under_plain_sgd() -> None:
    for decay in (0.0, 0.3):
        parameters = [nn.Parameter(t) for t in split(torch.randn(P))]
        level = level_of(curved, torch.randn(P), optimizer=SGD(parameters, LR, weight_decay=decay))
        v = torch.randn(P)
        assert error(solved(Sama(), level, v), LR * v) < 1e-15
        assert error(solved(Sama(), level, v), solved(Identity("lr"), level, v)) < 1e-15


def test_sama_takes_the_gradient_at_the_level_and_the_state_of_now() -> None:
    theta, v = torch.randn(P), torch.randn(P)
    parameters = [nn.Parameter(t.clone()) for t in split(theta)]
    optimizer = Adam(parameters, lr=LR, weight_decay=0.1, eps=1e-2)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    got = solved(Sama(), level_of(curved, theta, optimizer=optimizer), v)
    gradient = torch.func.grad(curved)(theta) + 0.1 * theta
    first, second = (torch.cat([optimizer.state[p][key] for p in parameters]) for key in ("exp_avg", "exp_avg_sq"))
    # the derivative of lr m / (sqrt(s) + eps) written out, at the fourth step
    m = (0.9 * first + 0.1 * gradient) / (1 - 0.9**4)
    s = (0.999 * second + 0.001 * gradient**2) / (1 - 0.999**4)
    dm, ds = 0.1 / (1 - 0.9**4), 0.002 * gradient / (1 - 0.999**4)
    slope = dm / (s.sqrt() + 1e-2) - m * ds / (2 * s.sqrt() * (s.sqrt() + 1e-2) ** 2)
    assert error(got, LR * slope * v) < 1e-10


def test_the_gradient_costs_no_pass_once_the_graph_is_there() -> None:
    calls = []

    def counted(theta: Tensor) -> Tensor:
        calls.append(1)
        return curved(theta)

    theta = torch.randn(P)
    level = level_of(counted, theta)
    exact = torch.func.grad(curved)(theta)
    level.gradient_graph()
    assert error(vectors.flat(level.gradient), exact) < 1e-15
    assert len(calls) == 1
    alone = level_of(counted, theta)
    assert error(vectors.flat(alone.gradient), exact) < 1e-15
    assert not any(t.requires_grad for t in alone.gradient)


def test_an_optimizer_without_a_registered_step_is_refused_and_never_taken_for_sgd() -> None:
    class MySGD(SGD):
        pass

    for optimizer in (Muon([nn.Parameter(torch.randn(2, 2))]), MySGD([nn.Parameter(torch.randn(2))], lr=0.1)):
        with pytest.raises(ConfigError, match=type(optimizer).__name__) as raised:
            pure_step_of(optimizer)
        assert "Adam" in str(raised.value)


def test_a_parameter_that_the_optimizer_does_not_hold_is_not_preconditioned() -> None:
    held, other = nn.Parameter(torch.randn(2)), nn.Parameter(torch.randn(2))
    ones = (torch.ones(2), torch.ones(2))
    got = rule(SGD([held], lr=0.1), [held, other]).precondition((held.detach(), other.detach()), ones, ones)
    assert torch.equal(got[0], torch.full((2,), 0.1))
    assert not got[1].any()


# options


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: Exact(-1.0, 5), "damping"),
        (lambda: Exact(0.0, 0), "largest_size"),
        (lambda: Nystrom(0, 0.1, 0), "columns"),
        (lambda: Nystrom(5, 0.0, 0), "rho"),
        (lambda: Minres(0, 0.0, 0.0), "iterations"),
        (lambda: Minres(5, float("nan"), 0.0), "damping"),
        (lambda: NormalConjugateGradient(5, 0.0, -1.0), "tolerance"),
        (lambda: WarmStep(0.0, 1, 0.0), "rho"),
        (lambda: WarmStep("fast", 1, 0.0), "rho"),  # type: ignore[arg-type]
        (lambda: WarmStep(0.1, 0, 0.0), "steps"),
        (lambda: FixedPoint(-1), "iterations"),
        (lambda: Neumann(5, "fast"), "step_size"),  # type: ignore[arg-type]
        (lambda: Neumann(5, 0.0), "step_size"),
        (lambda: Identity("sgd"), "scale"),  # type: ignore[arg-type]
    ],
)
def test_an_option_out_of_bounds_is_refused_by_name(build: Callable[[], Solver], option: str) -> None:
    with pytest.raises(ConfigError, match=option) as raised:
        build()
    assert raised.value.where == option


# three levels: upper -> middle -> lower -> middle's optimum -> F


class Row(nn.Module):
    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(row)


class Lower(Problem):
    """theta'A theta / 2 + lam'C theta."""

    module: Row
    matrix: Tensor
    mixed: Tensor

    def training_step(self, batch: Any) -> Tensor:
        theta = self.module.row
        loss: Tensor = theta @ self.matrix @ theta / 2 + self.upper.module.row @ self.mixed @ theta
        return loss


class Middle(Problem):
    """phi'M phi / 2 + theta'N phi."""

    module: Row
    matrix: Tensor
    mixed: Tensor

    def training_step(self, batch: Any) -> Tensor:
        phi = self.module.row
        loss: Tensor = phi @ self.matrix @ phi / 2 + self.lower.module.row @ self.mixed @ phi
        return loss


class Upper(Problem):
    """norm(phi - t)^2 / 2."""

    module: Row
    target: Tensor

    def training_step(self, batch: Any) -> Tensor:
        off = self.middle.module.row - self.target
        loss: Tensor = off @ off / 2 + 0.0 * self.module.row.sum()
        return loss


class Chain:
    """dF/dlam = C X_A N X_M (phi - t), X the solve's idea of the inverse of A and of M."""

    def __init__(self, solve: Callable[[], Solver], a: Tensor, m: Tensor, momentum: float = 0.0) -> None:
        self.a, self.m, self.c, self.n, target = a, m, torch.randn(3, P), torch.randn(P, P), torch.randn(P)
        lam = torch.randn(3)
        theta = -torch.linalg.solve(a, self.c.T @ lam)
        phi = -torch.linalg.solve(m, self.n.T @ theta)
        self.v = phi - target

        def optimizer(parameters: Any) -> SGD:
            return SGD(parameters, lr=LR, momentum=momentum)

        lower = Lower(
            name="lower",
            module=Row(theta),
            optimizer=optimizer,
            hypergradient=Implicit(solve(), ForwardOverReverse(), "after", "full"),
        )
        middle = Middle(
            name="middle",
            module=Row(phi),
            optimizer=optimizer,
            hypergradient=Implicit(solve(), ForwardOverReverse(), "after", "full"),
        )
        upper = Upper(name="upper", module=Row(lam), optimizer=optimizer)
        lower.matrix, lower.mixed, middle.matrix, middle.mixed, upper.target = a, self.c, m, self.n, target
        self.problems: dict[str, Problem] = {"lower": lower, "middle": middle, "upper": upper}
        for problem in self.problems.values():
            problem.bind_peers(self.problems)
        graph = ProblemGraph.build(
            list(self.problems), {"upper": ["lower"]}, {"lower": ["middle"], "middle": ["upper"]}
        )
        recorder = Recorder(FunctionalProgram(self.problems, torch.device("cpu")), graph)
        for problem in (lower, middle):
            recorder.before_loss(problem.name, None, None)
            recorder.before_update(problem)
        self.adjoint = Adjoint(graph, recorder.views)

    def gradient(self) -> Tensor:
        upper = self.problems["upper"]
        return vectors.flat(self.adjoint.gradient("upper", upper.training_step(None)).vector)  # type: ignore[arg-type]

    def expected(self, inverse: Callable[[Tensor], Tensor] = torch.linalg.inv) -> Tensor:
        gradient: Tensor = self.c @ inverse(self.a) @ self.n @ inverse(self.m) @ self.v
        return gradient


CONVERGED: dict[str, tuple[Callable[[], Solver], float]] = {
    "exact": (lambda: Exact(0.0, P), 1e-10),
    "nystrom": (lambda: Nystrom(P, 1e-7, 0), 2e-6),
    "minres": (lambda: Minres(P, 0.0, 0.0), 1e-8),
    "normal_cg": (lambda: NormalConjugateGradient(2 * P, 0.0, 0.0), 1e-8),
    "cg": (lambda: ConjugateGradient(P, 0.0, 0.0, False), 1e-8),
    "neumann": (lambda: Neumann(300, "lr"), 1e-8),
    "neumann auto": (lambda: Neumann(500, "auto"), 1e-8),
    "fixed_point": (lambda: FixedPoint(300), 1e-8),
}


@pytest.mark.parametrize(("solve", "bound"), CONVERGED.values(), ids=CONVERGED.keys())
def test_a_converging_solve_is_exact_through_three_levels(solve: Callable[[], Solver], bound: float) -> None:
    chain = Chain(solve, definite(), definite(), momentum=0.5)
    got = chain.gradient()
    assert error(got, chain.expected()) < bound
    before = [p.detach().clone() for problem in chain.problems.values() for p in problem.theta]
    assert torch.isfinite(chain.gradient()).all()
    after = [p for problem in chain.problems.values() for p in problem.theta]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.parametrize("name", ["exact", "minres", "normal_cg", "nystrom"])
def test_the_solves_for_indefinite_hessians_are_exact_through_three_levels(name: str) -> None:
    solve, bound = CONVERGED[name]
    chain = Chain(solve, indefinite(), indefinite())
    assert error(chain.gradient(), chain.expected()) < bound


def test_soba_converges_to_exact_through_three_levels() -> None:
    chain = Chain(lambda: WarmStep(0.3, 1, 0.0), definite(), definite())
    for _ in range(300):
        got = chain.gradient()
    assert error(got, chain.expected()) < 1e-8


@pytest.mark.parametrize("solve", [Sama, lambda: Identity("lr")], ids=["sama", "identity"])
def test_sama_and_identity_multiply_by_lr_through_three_levels(solve: Callable[[], Solver]) -> None:
    chain = Chain(solve, definite(), definite(), momentum=0.0)
    assert error(chain.gradient(), chain.expected(lambda matrix: LR * torch.eye(P))) < 1e-12


def test_sama_on_records_takes_momentum_from_the_state_after_the_step() -> None:
    chain = Chain(Sama, definite(), definite(), momentum=0.5)
    middle = chain.problems["middle"]
    middle.optimizer.param_groups[0]["dampening"] = 0.25
    first = chain.gradient()  # no step taken: torch starts the buffer at the undamped gradient
    middle.optimizer.state[middle.theta[0]]["momentum_buffer"] = torch.randn(P)
    assert error(chain.gradient(), 0.75 * first) < 1e-12
