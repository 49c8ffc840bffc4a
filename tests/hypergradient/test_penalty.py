"""F2SA and BOME: the bias of the first, the formula of the second, and where both end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.core.program.schedule import Action
from mlorun.errors import ConfigError
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.penalty import BOME, F2SA, Copy
from mlorun.hypergradient.sweep import Carries
from mlorun.run.device import Precision
from mlorun.verify.oracles import CASES, Case, quadratic
from mlorun.verify.suite import hypergradient, relative
from tests.hypergradient.stepping import execute, swept

CPU = torch.device("cpu")
MIXED = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)


def test_the_bias_of_f2sa_falls_as_one_over_gamma() -> None:
    case = quadratic()
    gammas = (1e2, 1e3, 1e4)
    errors = [
        relative(hypergradient(case, lambda gamma=gamma: F2SA(gamma, 0.0, 600, 0.3, True)), case.exact())  # type: ignore[misc]
        for gamma in gammas
    ]
    slopes = [math.log10(after / before) for before, after in pairwise(errors)]
    assert slopes == pytest.approx([-1.0, -1.0], abs=0.05)


@pytest.mark.parametrize("case", CASES)
def test_f2sa_with_a_large_gamma_is_nearly_exact_at_any_depth(case: str) -> None:
    oracle = CASES[case]()
    assert relative(hypergradient(oracle, lambda: F2SA(1e4, 0.0, 1500, 0.03, True)), oracle.exact()) < 1e-2


def engine_of(case: Case, make: Callable[[], Hypergradient], lr: float = 0.1) -> Engine:
    return Engine(case.problems(make, lr), case.graph, device=CPU, precision=Precision("fp32", CPU), train_iters=10**6)


def mixed() -> Case:
    """The quadratic case, with a product of lam and theta in F, too."""
    case = quadratic()
    plain = case.losses["up"]
    return replace(case, losses={**case.losses, "up": lambda p: plain(p) + p["up"] @ MIXED @ p["low"]})


def test_f2sa_at_any_gamma_is_its_formula() -> None:
    """L and F are quadratic in theta: y is where F / gamma + L has no slope."""
    case, gamma = mixed(), 3.0
    a, c, lam, z = case.hessians["low"], case.cross["low"]["up"], case.points["up"], case.points["low"]

    def upper(theta: Tensor) -> Tensor:
        return case.losses["up"]({"up": lam, "low": theta})

    slope = torch.autograd.functional.jacobian(upper, z)
    y = z - torch.linalg.solve(a + torch.autograd.functional.hessian(upper, z) / gamma, slope / gamma)
    rows = {"up": lam.clone().requires_grad_(), "low": z}
    (direct,) = torch.autograd.grad(case.losses["up"](rows), rows["up"])
    wanted = direct + gamma * c @ (y - z) + MIXED @ (y - z)
    assert relative(hypergradient(case, lambda: F2SA(gamma, 0.0, 600, 0.3, True)), wanted) < 1e-9


def test_gamma_grows_and_y_is_kept_from_call_to_call() -> None:
    case = quadratic()
    engine = engine_of(case, lambda: F2SA(10.0, 5.0, 1, 0.1, True))
    execute(engine, Action("low", starts=True), Action("up"))
    first = engine.adjoint.carries["up"]["low"]
    assert isinstance(first, Copy) and first.count == 1
    execute(engine, Action("low"), Action("up"))
    second = engine.adjoint.carries["up"]["low"]
    assert isinstance(second, Copy) and second.count == 2
    assert not torch.equal(first.y[0], second.y[0])


def test_gamma_is_larger_by_growth_at_every_call() -> None:
    case = quadratic()
    engine = engine_of(case, lambda: F2SA(3.0, 2.0, 4, 0.1, True))
    execute(engine, Action("low", starts=True))
    later = swept(engine, "up", {"low": (torch.ones(5),)}, {"low": Copy((torch.zeros(5),), 2)}).edges["low", "up"]
    engine.problems["low"].hypergradient = F2SA(7.0, 0.0, 4, 0.1, True)
    assert torch.equal(later[0], swept(engine, "up", {"low": (torch.ones(5),)}, {}).edges["low", "up"][0])


@pytest.mark.parametrize("follow", [True, False])
def test_f2sa_is_the_implicit_hypergradient_at_parameters_short_of_their_optimum_where_y_follows_them(
    follow: bool,
) -> None:
    case = quadratic()
    h, c = case.hessians["low"], case.cross["low"]["up"]
    theta = case.points["low"] + 0.5 * torch.randn(5)
    rows = {"up": case.points["up"].clone().requires_grad_(), "low": theta.clone().requires_grad_()}
    direct, v = torch.autograd.grad(case.losses["up"](rows), (rows["up"], rows["low"]))
    engine = engine_of(case, lambda: F2SA(1e4, 0.0, 600, 0.3, follow), lr=1e-12)  # which leaves theta where it is
    with torch.no_grad():
        engine.problems["low"].theta[0].copy_(theta)
    execute(engine, Action("low", starts=True))
    error = relative(engine.gradient("up")[0], direct - c @ torch.linalg.solve(h, v))
    assert error < 1e-3 if follow else error > 100


def test_weight_decay_of_the_optimizer_is_part_of_the_lower_loss() -> None:
    case, decay = quadratic(), 0.7
    h, c = case.hessians["low"], case.cross["low"]["up"]
    decayed = h + decay * torch.eye(5)
    theta = torch.linalg.solve(decayed, h @ case.points["low"])
    rows = {"up": case.points["up"].clone().requires_grad_(), "low": theta.clone().requires_grad_()}
    direct, v = torch.autograd.grad(case.losses["up"](rows), (rows["up"], rows["low"]))
    problems = {problem.name: problem for problem in case.problems(lambda: F2SA(1e4, 0.0, 600, 0.3, True))}
    low = problems["low"]
    low.update.optimizer = torch.optim.SGD(low.theta, lr=0.1, weight_decay=decay)
    with torch.no_grad():
        low.theta[0].copy_(theta)
    precision = Precision("fp32", CPU)
    engine = Engine(list(problems.values()), case.graph, device=CPU, precision=precision, train_iters=1)
    execute(engine, Action("low", starts=True))
    (gradient,) = engine.gradient("up")
    assert relative(gradient, direct - c @ torch.linalg.solve(decayed, v)) < 1e-3
    assert relative(gradient, case.exact()) > 0.1


@pytest.mark.parametrize("make", [lambda: F2SA(10.0, 1.0, 3, "lr", True), lambda: BOME(0.5, 3, "lr", True)])
def test_a_call_is_decided_by_its_carry_and_leaves_the_program_as_it_was(make: Callable[[], Hypergradient]) -> None:
    engine = engine_of(quadratic(), make)
    execute(engine, Action("low", starts=True))
    everything = [t for problem in engine.problems.values() for t in problem.theta]
    before = [t.detach().clone() for t in everything]

    def call(carries: Carries) -> tuple[Tensor, Carries]:
        result = swept(engine, "up", {"low": (torch.ones(5),)}, carries)
        return result.edges["low", "up"][0], result.carries

    (first, kept), (again, _) = call({}), call({})
    assert torch.equal(first, again)
    later, _ = call(kept)
    assert not torch.equal(later, first)
    assert torch.equal(call(kept)[0], later), "the carry was changed in place"
    assert all(torch.equal(t, old) and t.grad is None for t, old in zip(everything, before, strict=True))


@pytest.mark.parametrize("away", [0.0, 0.5])  # how far y starts up the slope of F, where the multiplier vanishes
def test_one_call_of_bome_is_its_formula(away: float) -> None:
    """L = theta'A theta / 2 + lam'C theta + a'theta: every derivative is written out."""
    case = mixed()
    eta, rate = 0.5, 0.1
    a, c, lam, z = case.hessians["low"], case.cross["low"]["up"], case.points["up"], case.points["low"]

    def grad_f(theta: Tensor) -> tuple[Tensor, Tensor]:
        leaves = {"up": lam.clone().requires_grad_(), "low": theta.clone().requires_grad_()}
        on_lam, on_theta = torch.autograd.grad(case.losses["up"](leaves), (leaves["up"], leaves["low"]))
        return on_theta, on_lam

    def multiplier(y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_theta, q_lam = a @ (y - z), c @ (y - z)  # the gradient of L vanishes at z, its optimum
        f_theta, f_lam = grad_f(y)
        square = q_theta @ q_theta + q_lam @ q_lam
        m = torch.clamp(eta - (f_theta @ q_theta + f_lam @ q_lam) / square, min=0) if square > 0 else torch.zeros(())
        return m, q_theta, q_lam

    start = away * grad_f(z)[0]
    y, multipliers = z + start, []
    for _ in range(3):
        m, q_theta, _ = multiplier(y)
        multipliers.append(float(m))
        y = y - rate * (grad_f(y)[0] + m * q_theta)
    m, _, q_lam = multiplier(y)
    assert (0.0 in multipliers[1:]) == (away > 0)
    wanted = m * q_lam + grad_f(y)[1] - grad_f(z)[1]
    engine = engine_of(case, lambda: BOME(eta, 3, rate, True), lr=0.0)
    execute(engine, Action("low", starts=True))
    edges = swept(engine, "up", {"low": (grad_f(z)[0],)}, {"low": Copy((start,), 1)}).edges
    assert relative(edges["low", "up"][0], wanted) < 1e-10


@pytest.mark.parametrize(
    ("make", "bound"),
    [(lambda: F2SA(100.0, 0.0, 5, 0.3, True), 0.03), (lambda: BOME(0.5, 5, 0.02, True), 0.05)],
)
def test_a_whole_run_ends_at_the_bilevel_optimum(make: Callable[[], Hypergradient], bound: float) -> None:
    case = quadratic()
    a, c = case.hessians["low"], case.cross["low"]["up"]

    def value(lam: Tensor) -> Tensor:
        offset = a @ case.points["low"] + c.T @ case.points["up"]  # -a of the oracle
        return case.losses["up"]({"up": lam, "low": torch.linalg.solve(a, offset - c.T @ lam)})

    zero = torch.zeros(3)
    best = -torch.linalg.solve(
        torch.autograd.functional.hessian(value, zero), torch.autograd.functional.jacobian(value, zero)
    )
    engine = engine_of(case, make, lr=0.3)
    for group in engine.problems["up"].optimizer.param_groups:
        group["lr"] = 0.01
    for _ in range(400):
        execute(engine, *(Action("low", starts=index == 0) for index in range(5)), Action("up"))
    reached = next(engine.problems["up"].module.parameters()).detach()
    assert relative(reached, best) < bound < relative(case.points["up"], best)


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: F2SA(0.0, 0.0, 1, 0.1, True), "gamma"),
        (lambda: F2SA(1.0, -1.0, 1, 0.1, True), "growth"),
        (lambda: F2SA(1.0, 0.0, 0, 0.1, True), "steps"),
        (lambda: BOME(0.0, 1, 0.1, True), "eta"),
        (lambda: BOME(1.0, 1, "fast", True), "rate"),  # type: ignore[arg-type]
        (lambda: BOME(1.0, 1, -0.1, True), "rate"),
    ],
)
def test_an_option_out_of_bounds_is_refused_by_name(build: Callable[[], Hypergradient], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        build()
