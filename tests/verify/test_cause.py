"""Why a difference of losses misses its bound, and whose fault it is: one cause each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from mlorun.core.program.problem import Problem
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.verify.oracles import Row
from mlorun.verify.program import PointReport
from mlorun.verify.second_derivatives import SecondDerivatives, second_derivatives
from tests.verify.programs import Loss, first_point, program, report, row_of

DRAWS = torch.Generator().manual_seed(5)
X, GOAL = torch.randn(20, 3, generator=DRAWS), torch.randn(20, 2, generator=DRAWS)


class Square(torch.autograd.Function):
    """x^2, whose backward says nothing of second derivatives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        doubled: Tensor = 2 * slope * x
        return doubled


class CutSquare(torch.autograd.Function):
    """x^2, whose backward holds x constant: second derivatives are cut off without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach()
        return x * x

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        doubled: Tensor = 2 * slope.detach() * ctx.kept
        return doubled


class HalfProduct(torch.autograd.Function):
    """a b, whose backward holds b constant: its Hessian by double backward is not symmetric."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        a, b = ctx.saved_tensors
        return slope * b.detach(), slope * a


class Net(nn.Module):
    """Two layers; the first with torch's weight_norm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = parametrizations.weight_norm(nn.Linear(3, 4))
        self.second = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).tanh())
        return out


def darts(radius: float = 0.01) -> Implicit:
    return Implicit(Identity(1.0), CentralDifference(radius, relative=False), "after", "full")


def rows(lower: Loss, estimate: Implicit) -> PointReport:
    """low is a row of 3 beside up's; F pulls low to 1."""
    up, low = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 0.3, -0.7])
    return report(program((Row(up), lambda p: (row_of(p["low"]) - 1).square().sum() / 2), (Row(low), lower), estimate))


def coupled(square: Callable[[Tensor], Tensor]) -> Loss:
    """low^2 weighted by up through this square."""
    return lambda p: (square(row_of(p["low"]) * row_of(p["up"])) + row_of(p["low"]).square()).sum()


def test_a_detach_is_told_by_the_two_orders_of_differentiation() -> None:
    made = rows(lambda p: (row_of(p["up"]) * row_of(p["low"]).detach() ** 2 * row_of(p["low"])).sum(), darts())
    assert not made.holds
    (line,) = made.explanations
    assert "detached" in line and "the derivative of its update is" in line and "wrong double backward" not in line


def test_rounding_is_told_by_the_same_difference_in_float64() -> None:
    made = rows(coupled(torch.square), darts(1e-6))
    assert not made.holds
    (line,) = made.explanations
    assert "rounding: in float64 the same difference, at radius 1e-06, is off by" in line


def test_a_radius_that_is_too_large_is_told_by_a_smaller_one() -> None:
    made = rows(lambda p: (row_of(p["up"]) * (3 * row_of(p["low"])).sin()).sum(), darts(1.0))
    assert not made.holds
    (line,) = made.explanations
    assert "the radius of the difference: at radius 1 it is off by" in line and "at 0." in line.replace("radius 0", "0")


@pytest.mark.parametrize("square", [Square.apply, CutSquare.apply], ids=["once_differentiable", "cut off"])
def test_a_kernel_that_cuts_second_derivatives_is_blamed_and_not_the_difference(square: Any) -> None:
    made = rows(coupled(square), darts())
    assert made.holds, "the difference is right here"
    assert made.edges[0].error < 1e-3 and made.edges[0].off_ift == made.edges[0].off_ift
    (line,) = made.explanations
    assert "double backward" in line and "low: a kernel of its loss" in line
    assert "differences of lower gradients" in made.references[0]


def test_where_differences_stand_in_for_an_exact_cross_the_bound_is_that_of_differences() -> None:
    exact = Implicit(Identity(1.0), ForwardOverReverse(), "after", "full")
    made = rows(lambda p: Square.apply((3 * row_of(p["low"])).sin() * row_of(p["up"])).sum(), exact)
    assert made.edges[0].error > 1e-5
    assert made.holds


def weight_norm_loss(p: Mapping[str, Problem]) -> Tensor:
    net, up = p["low"].module, row_of(p["up"])
    dtype = up.dtype
    return (up[:, None] * (net(X.to(dtype)) - GOAL.to(dtype)).square()).mean()


def with_weight_norm(estimate: Implicit) -> PointReport:
    def upper(p: Mapping[str, Problem]) -> Tensor:
        net = p["low"].module
        dtype = next(net.parameters()).dtype
        return (net(X.to(dtype)[:10] + 1) - 1).square().mean()  # type: ignore[no-any-return]

    return report(program((Row(1 + torch.rand(20, generator=DRAWS)), upper), (Net(), weight_norm_loss), estimate))


def test_with_weight_norm_double_backward_is_what_is_wrong() -> None:
    made = with_weight_norm(darts())
    assert made.holds, made.edges
    assert "wrong double backward" in made.explanations[0]
    assert "differences of lower gradients" in made.references[0]


def second_of(lower: Loss, low: nn.Module | None = None) -> SecondDerivatives:
    up, row = torch.tensor([0.5, -1.0, 2.0]), Row(torch.tensor([1.0, 0.3, -0.7]))
    made = program((Row(up), lambda p: row_of(p["low"]).sum()), (low or row, lower), darts())
    return second_derivatives(first_point(made).levels()["low"])


def test_an_honest_loss_has_one_second_derivative() -> None:
    second = second_of(coupled(torch.square))
    assert not second.backward_is_wrong and not second.stop_gradient and not second.moving_detached
    assert second.mixed.off < 1e-6 and second.hessian.off < 1e-6


def test_a_detach_of_the_lower_parameters_alone_is_no_fault_of_double_backward() -> None:
    second = second_of(lambda p: (row_of(p["low"]).detach().exp() * row_of(p["low"]) * row_of(p["up"])).sum())
    assert second.moving_detached and not second.backward_is_wrong


def test_beside_a_detach_a_wrong_double_backward_is_seen_by_its_hessian() -> None:
    """A detach explains two numbers for one second derivative, and no Hessian that is not symmetric."""

    def lower(kernel: Callable[..., Tensor]) -> Loss:
        def loss(p: Mapping[str, Problem]) -> Tensor:
            low, up = row_of(p["low"]), row_of(p["up"])
            return (low.detach().exp() * low * up).sum() + kernel(low[:-1], low[1:]).sum()

        return loss

    right, wrong = second_of(lower(torch.mul)), second_of(lower(HalfProduct.apply))
    assert not right.backward_is_wrong and wrong.backward_is_wrong
    assert "its Hessian" in wrong.fault


def test_recomputed_activations_are_no_fault() -> None:
    def lower(p: Mapping[str, Problem]) -> Tensor:
        low, up = row_of(p["low"]), row_of(p["up"])
        kept: Tensor = checkpoint(lambda x: (x.exp() * up).sin(), low, use_reentrant=False)
        return kept.sum() + low.square().sum()

    made = rows(lower, Implicit(Identity(1.0), ForwardOverReverse(), "after", "full"))
    assert made.holds and not made.explanations
