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
