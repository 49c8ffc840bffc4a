"""The smoothed identity solve in closed form: the running mean of v, without its part along the lower momentum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.smoothed import Smoothed
from tests.hypergradient.given import GivenProblem
from tests.hypergradient.test_solves import P, curved, level_of, rule, split


def answers(solve: Smoothed, levels: list[Level], vs: list[Tensor]) -> list[Tensor]:
    """The x of each call, in rows."""
    found, carry = [], None
    for level, v in zip(levels, vs, strict=True):
        x, carry = solve(level, split(v), carry)
        found.append(vectors.flat(x))
    return found


def at(theta: Tensor) -> Level:
    return level_of(curved, theta)


def test_without_projection_it_is_the_exponential_mean_of_every_v_so_far() -> None:
    vs = [torch.randn(P) for _ in range(4)]
    found = answers(Smoothed(0.8, False), [at(torch.randn(P)) for _ in vs], vs)
    for n, x in enumerate(found):
        weights = [0.8**n if k == 0 else 0.2 * 0.8 ** (n - k) for k in range(n + 1)]
        assert sum(weights) == pytest.approx(1.0)
        assert torch.allclose(x, sum(w * v for w, v in zip(weights, vs, strict=False)), rtol=0, atol=1e-14)  # type: ignore[arg-type]


def test_with_projection_it_is_the_nearest_vector_orthogonal_to_the_momentum() -> None:
    parameter = torch.nn.Parameter(torch.randn(P))
    for optimizer, key in (
        (torch.optim.SGD([parameter], lr=0.01, momentum=0.9), "momentum_buffer"),
        (torch.optim.Adam([parameter]), "exp_avg"),
    ):
        for _ in range(3):
            optimizer.zero_grad()
            curved(parameter).backward()
            optimizer.step()
        m, v = optimizer.state[parameter][key], torch.randn(P)
        level = Level(
            GivenProblem("lower", (parameter.detach(),), rule(optimizer, [parameter]), lambda p: curved(*p["lower"]))
        )
        (x,), _ = Smoothed(0.5, True)(level, (v,), None)
        away = torch.eye(P) - torch.outer(m, m) / (m @ m)
        assert torch.allclose(x, away @ v, rtol=0, atol=1e-13)
        assert abs(float(x @ m)) < 1e-12


def test_without_momentum_it_is_orthogonal_to_the_gradient_of_the_batch() -> None:
    theta, vs = torch.randn(P), [torch.randn(P) for _ in range(2)]
    found = answers(Smoothed(0.5, True), [at(theta), at(theta)], vs)
    gradient = torch.autograd.functional.jacobian(curved, theta)  # type: ignore[no-untyped-call]
    away = torch.eye(P) - torch.outer(gradient, gradient) / (gradient @ gradient)
    assert torch.allclose(found[1], away @ (vs[0] + vs[1]) / 2, rtol=0, atol=1e-13)


def test_where_the_lower_gradient_vanishes_nothing_is_left_out() -> None:
    v, level = torch.randn(P), level_of(lambda theta: theta @ theta, torch.zeros(P))
    (x,) = answers(Smoothed(0.5, True), [level], [v])
    assert torch.equal(x, v)


def test_its_carry_has_memory_of_its_own() -> None:
    v = torch.ones(P)
    _, carry = Smoothed(0.5, False)(at(torch.randn(P)), split(v), None)
    v.zero_()  # the engine may use it again
    assert torch.equal(vectors.flat(carry), torch.ones(P))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_is_no_mean_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="smoothing must lie"):
        Smoothed(smoothing, True)
