"""The smoothed identity solve in closed form: the running mean of v, without its part along the lower gradient's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.smoothed import Smoothed
from tests.hypergradient.test_solves import P, curved, level_of, split


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


def test_with_projection_it_is_the_nearest_vector_orthogonal_to_the_mean_lower_gradient() -> None:
    thetas, vs = [torch.randn(P) for _ in range(3)], [torch.randn(P) for _ in range(3)]
    found = answers(Smoothed(0.5, True), [at(theta) for theta in thetas], vs)
    s, m = torch.zeros(P), torch.zeros(P)
    for n, (theta, v) in enumerate(zip(thetas, vs, strict=True)):
        gradient = torch.autograd.functional.jacobian(curved, theta)  # type: ignore[no-untyped-call]
        s, m = (v, gradient) if n == 0 else (0.5 * (s + v), 0.5 * (m + gradient))
        away = torch.eye(P) - torch.outer(m, m) / (m @ m)
        assert torch.allclose(found[n], away @ s, rtol=0, atol=1e-13)
        assert abs(float(found[n] @ m)) < 1e-12


def test_where_the_lower_gradient_vanishes_nothing_is_left_out() -> None:
    v, level = torch.randn(P), level_of(lambda theta: theta @ theta, torch.zeros(P))
    (x,) = answers(Smoothed(0.5, True), [level], [v])
    assert torch.equal(x, v)


def test_it_keeps_no_part_of_the_v_that_it_is_given() -> None:
    v = torch.ones(P)
    x, carry = Smoothed(0.5, False)(at(torch.randn(P)), split(v), None)
    v.zero_()  # the engine may reuse its memory
    assert torch.equal(vectors.flat(carry[0]), torch.ones(P)) and torch.equal(vectors.flat(x), torch.ones(P))


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_a_smoothing_that_is_no_mean_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="smoothing must lie"):
        Smoothed(smoothing, True)
