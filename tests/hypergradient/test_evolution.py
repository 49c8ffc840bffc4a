"""Evolution strategies: unbiased, reproducible, and blind to nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.core.plan import Action
from mlorun.errors import ConfigError
from mlorun.hypergradient.evolution import Evolution
from mlorun.hypergradient.level import Channel, Hypergradient
from mlorun.run.device import Precision
from mlorun.verify.oracles import CASES, Case, maml
from mlorun.verify.suite import hypergradient, relative, series

STEPS = 2


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def estimate(case: Case, samples: int, seed: int) -> Tensor:
    return hypergradient(case, lambda: Evolution(samples, 0.1, seed), steps=STEPS)


def test_the_mean_over_ten_thousand_draws_on_a_quadratic_is_within_three_sigma() -> None:
    case = CASES["Q1 quadratic"]()
    blocks = torch.stack([estimate(case, 100, seed) for seed in range(100)])  # 1e4 draws
    wanted = case.expected(series(STEPS))
    sigma = blocks.std(dim=0) / len(blocks) ** 0.5
    assert ((blocks.mean(dim=0) - wanted).abs() < 3 * sigma).all()
    # and the bound means something: one block is much further off than their mean
    assert relative(blocks.mean(dim=0), wanted) < 0.05 < relative(blocks[0], wanted)


def test_a_start_decided_above_is_perturbed_too() -> None:
    oracle = maml()
    assert relative(hypergradient(oracle, lambda: Evolution(2000, 1e-3, 0)), oracle.exact()) < 0.15


def test_every_way_of_acting_is_seen() -> None:
    assert Evolution.sees == set(get_args(Channel))


def engine_at(case: Case, made: Hypergradient) -> Engine:
    device = torch.device("cpu")
    engine = Engine(
        case.problems(lambda: made), case.graph, device=device, precision=Precision("fp32", device), train_iters=1
    )
    for index in range(STEPS):
        engine.execute(Action("low", starts=index == 0))
    engine.records.peek("up")
    return engine


def test_a_call_is_decided_by_its_carry_and_moves_no_random_numbers() -> None:
    engine = engine_at(CASES["Q1 quadratic"](), Evolution(4, 0.1, 0))
    pulls = {"low": torch.ones(5)}
    before = torch.get_rng_state()

    def call(carries: dict[tuple[str, str], object]) -> Tensor:
        return engine.adjoint.sweep("up", {k: (v,) for k, v in pulls.items()}, carries=carries)["low", "up"][0]

    first, again, later = call({}), call({}), call({("up", "low"): 1})
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("samples", "sigma", "name"), [(0, 0.1, "samples"), (1, 0.0, "sigma")])
def test_an_option_out_of_bounds_is_refused_by_name(samples: int, sigma: float, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Evolution(samples, sigma, 0)
