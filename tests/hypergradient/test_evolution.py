"""Evolution strategies: unbiased, reproducible, and blind to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.schedule import Action
from mlorun.core.program.update import UpdateRule
from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.estimator import Channel, Hypergradient
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.inner_loop import InnerLoop, Iterate, RecordedUpdate, Values
from mlorun.hypergradient.level import Level, UpperLoss
from mlorun.hypergradient.sweep import Carries
from mlorun.hypergradient.vectors import Vector
from mlorun.run.device import Precision
from mlorun.verify.oracles import CASES, Case, maml
from mlorun.verify.suite import hypergradient, relative
from tests.hypergradient.given import GivenProblem
from tests.hypergradient.stepping import execute, swept

LR, STEPS = 0.2, 2
A = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
TARGET = torch.tensor([1.0, -1.0], dtype=torch.float64)
LAM = torch.tensor([0.3, -0.4], dtype=torch.float64)


def by_loss(lam: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    return lam, None, {}


def by_start(lam: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    return torch.zeros(2), lam, {}


def by_learning_rate(lam: Tensor) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    return torch.ones(2), None, {"lr": LR * lam.sum().exp()}


# lam to (what the loss pulls towards, the start, the optimizer's options)
Acts = Callable[[Tensor], tuple[Tensor, Tensor | None, dict[str, Tensor]]]


def descent_loss(theta: Tensor, pull: Tensor) -> Tensor:
    return theta @ A @ theta / 2 - pull @ theta


def upper_loss(theta: Tensor) -> Tensor:
    return (theta - TARGET).square().sum() / 2


def end(lam: Tensor, acts: Acts) -> Tensor:
    """theta_T, written out."""
    pull, start, options = acts(lam)
    theta = torch.zeros(2) if start is None else start
    for _ in range(STEPS):
        theta = theta - options.get("lr", LR) * (A @ theta - pull)
    return theta


def level(acts: Acts) -> Level:
    lam = LAM.clone().requires_grad_()

    def loss(values: Values) -> Tensor:
        return descent_loss(values["low"][0], acts(values["up"][0])[0])

    def start(values: Values) -> Vector | None:
        given = acts(values["up"][0])[1]
        return None if given is None else (given,)

    theta = nn.Parameter(end(LAM, acts))
    rule = UpdateRule((theta,), torch.optim.SGD([theta], lr=LR), None, None)
    first = Iterate((torch.zeros(2),), ({},))
    updates = tuple(RecordedUpdate(None, rule.options(), {}, first if t == 0 else None) for t in range(STEPS))
    problem = GivenProblem(
        "low",
        vectors.detach((theta,)),
        rule,
        loss,
        lam={"up": (lam,)},
        inner_loop=InnerLoop(updates, whole=True),
        given_start=start,
        given_options=lambda values: acts(values["up"][0])[2],
    )
    v = cotangent(problem.point)
    return Level(problem, UpperLoss(lambda values: upper_loss(values["low"][0]), v, v))


def cotangent(theta: Vector) -> Vector:
    return (theta[0] - TARGET,)


def blocks(acts: Acts, sigma: float, count: int, samples: int) -> Tensor:
    """The estimate of one call after another."""
    estimate, carry, estimates = Evolution(samples, sigma, 0), None, []
    at = level(acts)
    for _ in range(count):
        parts, carry = estimate(at, cotangent(at.theta), carry)
        estimates.append(parts["up"][0])
    return torch.stack(estimates)


@pytest.mark.parametrize(
    ("acts", "sigma", "count"),
    # F(theta_T) is quadratic in lam for the first two: antithetic pairs are unbiased for any sigma
    [(by_loss, 0.5, 100), (by_start, 0.5, 10), (by_learning_rate, 1e-3, 10)],
)
def test_the_mean_over_many_draws_is_within_three_sigma(acts: Acts, sigma: float, count: int) -> None:
    lam = LAM.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(upper_loss(end(lam, acts)), lam)
    estimates = blocks(acts, sigma, count, samples=100)
    error = estimates.std(dim=0) / count**0.5
    assert ((estimates.mean(dim=0) - wanted).abs() < 3 * error).all()
    assert (error < 0.1 * wanted.norm()).all(), "too noisy to tell anything"


def test_a_pair_takes_the_curvature_out() -> None:
    """F(theta_T) is quadratic in lam: the two runs of a pair give its slope along u, whatever sigma is."""
    wide, narrow = (blocks(by_loss, sigma, 1, samples=1) for sigma in (0.5, 0.01))
    assert relative(wide, narrow) < 1e-9


def test_a_start_decided_above_is_perturbed_too() -> None:
    oracle = maml()
    assert relative(hypergradient(oracle, lambda: Evolution(2000, 1e-3, 0)), oracle.exact()) < 0.15


def test_every_way_of_acting_is_seen() -> None:
    assert Evolution.needs.channels == set(get_args(Channel))


def engine_at(case: Case, made: Hypergradient) -> Engine:
    device = torch.device("cpu")
    engine = Engine(
        case.problems(lambda: made), case.graph, device=device, precision=Precision("fp32", device), train_iters=1
    )
    execute(engine, *(Action("low", starts=index == 0) for index in range(STEPS)))
    return engine


def test_a_call_is_decided_by_its_carry_and_moves_no_random_numbers() -> None:
    engine = engine_at(CASES["Q1 quadratic"](), Evolution(4, 0.1, 0))
    before = torch.get_rng_state()

    def call(carries: Carries) -> Tensor:
        return swept(engine, "up", {"low": (torch.ones(5),)}, carries).edges["low", "up"][0]

    first, again, later = call({}), call({}), call({"low": 1})
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("samples", "sigma", "name"), [(0, 0.1, "samples"), (1, 0.0, "sigma")])
def test_an_option_out_of_bounds_is_refused_by_name(samples: int, sigma: float, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Evolution(samples, sigma, 0)


def test_a_middle_problem_that_differentiates_through_a_lower_one_is_refused() -> None:
    rows = {name: torch.zeros(2) for name in ("top", "middle", "low")}
    case = Case(
        losses=dict.fromkeys(rows, lambda p: torch.stack([row.square().sum() for row in p.values()]).sum()),
        points=rows,
        graph=ProblemGraph.build(list(rows), {"top": ["middle"], "middle": ["low"]}),
        upper="top",
        direct=rows["top"],
        cotangents={},
        hessians={},
        cross={},
    )
    device = torch.device("cpu")
    with pytest.raises(ConfigError, match="middle differentiates through low itself"):
        Engine(
            case.problems(lambda: Evolution(1, 0.1, 0)),
            case.graph,
            device=device,
            precision=Precision("fp32", device),
            train_iters=1,
        )
