"""Every way of stopping a gradient is held at its value of before, whatever the parameters are now."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mlorun.hypergradient.stop_gradients import StopGradients


def by_no_grad(theta: Tensor) -> Tensor:
    with torch.no_grad():
        return 2 * theta


def changed_in_place(theta: Tensor) -> Tensor:
    with torch.no_grad():
        return (4 * theta).mul_(0.5)


def filled_in_place(theta: Tensor) -> Tensor:
    goal = torch.zeros_like(theta)
    with torch.no_grad():
        goal.add_(theta, alpha=2)
    return goal


def by_out(theta: Tensor) -> Tensor:
    goal = torch.zeros_like(theta)
    with torch.no_grad():
        torch.mul(theta, 2, out=goal)
    return goal


def by_inner_gradient(theta: Tensor) -> Tensor:
    return torch.autograd.grad(theta.square().sum(), theta)[0]


def by_item(theta: Tensor) -> Tensor:
    return torch.stack([torch.full((), 2 * x.item(), dtype=theta.dtype) for x in theta])


def by_list(theta: Tensor) -> Tensor:
    return 2 * torch.tensor(theta.tolist(), dtype=theta.dtype)


WAYS: list[Callable[[Tensor], Tensor]] = [
    lambda theta: 2 * theta.detach(),
    by_no_grad,
    changed_in_place,
    filled_in_place,
    by_out,
    by_inner_gradient,
    by_item,
    by_list,
]
NAMES = ["detach", "no_grad", "changed in place", "filled in place", "out", "inner gradient", "item", "tolist"]


@pytest.mark.parametrize("stopped", WAYS, ids=NAMES)
def test_a_stopped_value_is_held(stopped: Callable[[Tensor], Tensor]) -> None:
    then, now = (torch.tensor(row).requires_grad_() for row in ([1.0, 2.0], [5.0, 7.0]))

    def loss(theta: Tensor) -> Tensor:
        first, second = stopped(theta), stopped(3 * theta) / 3
        return (theta * first).sum() + 10 * (theta * second).sum()

    stops = StopGradients(lambda: loss(then))
    with stops.held():
        value = loss(now)
    assert float(loss(now).detach()) == 11 * 2 * (25 + 49)
    assert float(value.detach()) == pytest.approx(11 * 2 * (5 * 1 + 7 * 2), rel=1e-12)
    (gradient,) = torch.autograd.grad(value, now)
    torch.testing.assert_close(gradient, 22 * then.detach())


def test_a_loss_that_stops_more_than_before_is_refused() -> None:
    theta = torch.ones(2).requires_grad_()
    stops = StopGradients(lambda: theta.detach().sum())
    with stops.held(), pytest.raises(RuntimeError, match="stops more gradients than at the evaluation before"):
        (theta.detach() + theta.detach()).sum()


def test_a_detached_factor_stays_as_it_was_and_an_argument_that_is_handed_on_is_not_written() -> None:
    data, x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0], requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (data.to(x) * x * x.detach()).sum()

    graph = loss(x)
    stops, version = StopGradients(lambda: loss(x)), data._version
    away = (x + 1).detach().requires_grad_()
    with stops.held():
        moved = loss(away)
    assert moved.item() == 1 * 4 * 3 + 2 * 5 * 4, "the factor is that of the first evaluation"
    assert data._version == version, "data.to(x) is data itself"
    graph.backward()


def test_what_is_written_in_place_is_held_as_well() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(2)
        with torch.no_grad():
            kept.copy_(x)
        return (kept * x).sum()

    stops = StopGradients(lambda: loss(x))
    away = (x + 1).detach().requires_grad_()
    with stops.held():
        moved = loss(away)
    assert moved.item() == 3 * 4 + 4 * 5
