"""Programs where a problem that is differentiated through steers others: against solving the whole program again."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.errors import GraphError
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient, Nested
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.exact import Exact
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.verify.suite import relative
from tests.hypergradient.resolving import Loss, Solved


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definite(seed: int, size: int) -> Tensor:
    half = random(seed, size, size)
    return half @ half.T / size + torch.eye(size)


def exact(nested: Nested) -> Callable[[str], Hypergradient]:
    return lambda name: Implicit(Exact(0.0, 100), DoubleBackward(), "after", nested)


# scalars

SCALAR = {
    "mid": lambda p: ((p["bot"] - 1).square() + p["top"] * p["mid"].square()).sum() / 2,
    "bot": lambda p: ((p["bot"] - p["mid"]).square() + p["bot"].square()).sum() / 2,
}
BOTH = {"bot": ["mid", "top"], "mid": ["top"]}


def scalar(top: Loss, l2u: Mapping[str, list[str]]) -> Solved:
    starts = {"top": torch.tensor([0.25]), "mid": torch.tensor([1.0]), "bot": torch.tensor([0.5])}
    graph = ProblemGraph.build(list(starts), {"top": ["mid"], "mid": ["bot"]}, l2u)
    return Solved({"top": top, **SCALAR}, graph, starts)


@pytest.mark.parametrize("nested", ["full", "gauss_newton"])
@pytest.mark.parametrize(
    ("top", "l2u", "truth"),
    [
        (lambda p: (p["bot"] - 2).square().sum() / 2 + p["mid"].square().sum() / 4, BOTH, 0.5),
        (lambda p: (p["bot"] - 2).square().sum() / 2 + p["mid"].square().sum() / 2, BOTH, -0.5),
        (lambda p: p["mid"].square().sum() / 2, {"bot": ["mid"], "mid": ["top"]}, -2.0),
        (lambda p: (p["bot"] - 2).square().sum() / 2, {"bot": ["mid", "top"]}, 1.5),
    ],
)
def test_the_scalar_program_has_its_closed_form(top: Loss, l2u: Any, truth: float, nested: Nested) -> None:
    program = scalar(top, l2u)
    assert float(program.gradient("top", exact(nested))[0]) == pytest.approx(truth, abs=1e-12)
    assert float(program.slope("top")[0]) == pytest.approx(truth, abs=1e-6)


def test_by_its_own_loss_alone_the_scalar_program_is_twice_as_far() -> None:
    program = scalar(lambda p: p["mid"].square().sum() / 2, {"bot": ["mid"], "mid": ["top"]})
    assert float(program.gradient("top", exact("own_loss"))[0]) == pytest.approx(-4.0, abs=1e-12)


@pytest.mark.parametrize("nested", ["full", "gauss_newton"])
def test_gauss_newton_leaves_out_how_a_lower_optimum_curves(nested: Nested) -> None:
    """bot* = sin mid, so that d2/dmid2 of (bot* - 1)^2 / 2 is cos(mid)^2 and, in full, (1 - sin mid) sin mid more."""
    losses: dict[str, Loss] = {
        "top": lambda p: p["mid"].square().sum() / 2,
        "mid": lambda p: ((p["bot"] - 1).square() + p["top"] * (p["mid"] - 2).square()).sum() / 2,
        "bot": lambda p: (p["bot"] - p["mid"].sin()).square().sum() / 2,
    }
    starts = {"top": torch.tensor([3.0]), "mid": torch.tensor([1.8]), "bot": torch.tensor([0.9])}
    graph = ProblemGraph.build(list(starts), {"top": ["mid"], "mid": ["bot"]}, {"bot": ["mid"], "mid": ["top"]})
    program = Solved(losses, graph, starts)
    mid = float(program.at("top", starts["top"])["mid"])
    curvature = 3.0 + math.cos(mid) ** 2 + (nested == "full") * (1 - math.sin(mid)) * math.sin(mid)
    got = float(program.gradient("top", exact(nested))[0])
    assert got == pytest.approx(-mid * (mid - 2) / curvature, rel=1e-9)


@pytest.mark.parametrize(("scale", "words"), [(0.5, ""), (0.52, ""), (0.6, "leaves 20 %"), (0.1, "leaves 80 %")])
def test_a_solve_below_a_nested_problem_that_is_far_from_one_is_pointed_out(
    scale: float, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """bot's Hessian is 2."""

    def estimate(name: str) -> Hypergradient:
        solve = Identity(scale) if name == "bot" else Exact(0.0, 100)
        return Implicit(solve, DoubleBackward(), "after", "full")

    with caplog.at_level(logging.WARNING, "mlorun"):
        scalar(lambda p: p["mid"].square().sum() / 2, {"bot": ["mid"], "mid": ["top"]}).gradient("top", estimate)
    assert bool(caplog.records) == bool(words)
    assert words in caplog.text
    assert "mid: the second derivatives of its total loss solve with bot's Hessian" in caplog.text or not words


# any program


def smooth(seed: int, name: str, reads: Mapping[str, int], size: int, *, joint: bool = False) -> Loss:
    """Strongly convex in its own row, coupled to every row that it reads; jointly quadratic, or not."""
    a, shift = definite(seed, size) + torch.eye(size), 0.5 * random(seed + 1, size)
    mixed = {other: 0.4 * random(seed + 2 + i, n, size) for i, (other, n) in enumerate(reads.items())}

    def loss(p: Mapping[str, Tensor]) -> Tensor:
        own = p[name]
        value = own @ a @ own / 2 + shift @ own
        for other, block in mixed.items():
            pulled = p[other] @ block
            value = value + pulled @ own + p[other].square().sum() / 2
            if not joint:
                value = value + (pulled.tanh() * own.square()).sum() / 4 + (own * p[other].sum()).sin().sum() / 8
        return value

    return loss


LONG = 4  # problems in a row, from which on each has one parameter: the reference solves all below at every evaluation


def program(
    u2l: Mapping[str, list[str]], l2u: Mapping[str, list[str]], *, joint: bool = False, decay: float = 0.0
) -> Solved:
    names = list(dict.fromkeys([*u2l, *l2u, *(n for to in (*u2l.values(), *l2u.values()) for n in to)]))
    graph = ProblemGraph.build(names, u2l, l2u)
    sizes = {name: 1 if len(graph.levels()) >= LONG else 2 for name in names}
    losses = {}
    for index, name in enumerate(names):
        reads = {other: sizes[other] for other in graph.reads(name)}
        losses[name] = smooth(100 * (index + 1), name, reads, sizes[name], joint=joint)
    starts = {name: 0.3 * random(7 + index, sizes[name]) for index, name in enumerate(names)}
    return Solved(losses, graph, starts, {name: decay for name in names if name != "top"})


PROGRAMS: dict[str, tuple[dict[str, list[str]], dict[str, list[str]]]] = {
    "top reads middle alone": ({"top": ["mid"], "mid": ["low"]}, {"low": ["mid"], "mid": ["top"]}),
    "top reads both": ({"top": ["mid"], "mid": ["low"]}, {"low": ["mid", "top"], "mid": ["top"]}),
    "top reads the lowest alone": ({"top": ["mid"], "mid": ["low"]}, {"low": ["mid", "top"]}),
    "top steers both": ({"top": ["mid", "low"], "mid": ["low"]}, {"low": ["mid", "top"], "mid": ["top"]}),
    "two below the middle": (
        {"top": ["mid"], "mid": ["low", "base"]},
        {"base": ["low", "mid"], "low": ["mid", "top"], "mid": ["top"]},
    ),
    "middle steers the lowest of a chain": (
        {"top": ["mid"], "mid": ["base"]},
        {"base": ["low"], "low": ["mid", "top"], "mid": ["top"]},
    ),
    "two middles side by side": (
        {"top": ["mid", "side"], "mid": ["low"], "side": ["base"]},
        {"low": ["mid"], "base": ["side", "top"], "mid": ["top"], "side": ["top"]},
    ),
    "a problem below that does not answer": (
        {"top": ["mid", "base"], "mid": ["low"]},
        {"base": ["low", "mid"], "low": ["mid", "top"], "mid": ["top"]},
    ),
    "four levels": (
        {"top": ["mid"], "mid": ["low"], "low": ["base"]},
        {"base": ["low", "mid"], "low": ["mid", "top"], "mid": ["top"]},
    ),
    "four levels, the lowest read everywhere": (
        {"top": ["mid", "base"], "mid": ["low", "base"], "low": ["base"]},
        {"base": ["low", "mid", "top"], "low": ["mid"], "mid": ["top"]},
    ),
    "a middle above the nested one": (
        {"top": ["side"], "side": ["mid"], "mid": ["low"]},
        {"low": ["mid"], "mid": ["side"], "side": ["top"]},
    ),
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_nested_program_is_differentiated_as_if_it_were_solved_again(kind: str) -> None:
    solved = program(*PROGRAMS[kind], decay=0.3)
    assert relative(solved.gradient("top", exact("full")), solved.slope("top")) < 1e-7


@pytest.mark.parametrize("kind", PROGRAMS)
def test_gauss_newton_is_exact_where_the_problems_below_are_jointly_quadratic(kind: str) -> None:
    solved = program(*PROGRAMS[kind], joint=True)
    truth = solved.slope("top")
    assert relative(solved.gradient("top", exact("gauss_newton")), truth) < 1e-7
    assert relative(solved.gradient("top", exact("full")), truth) < 1e-7


@pytest.mark.parametrize("cross", [ForwardOverReverse(), CentralDifference(1e-2, relative=False)])
def test_the_cross_of_a_total_loss_is_always_double_backward(cross: Cross) -> None:
    solved = program(*PROGRAMS["top reads both"], decay=0.3)
    engine = solved.engine("top", lambda name: Implicit(Exact(0.0, 100), cross, "after", "full"))
    assert relative(engine.gradient("top")[0], solved.slope("top")) < 1e-5


# kernels


class Softplus(torch.autograd.Function):
    """With a backward pass that is right, and cut off from further ones in silence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * torch.sigmoid(x.detach())


@pytest.mark.parametrize("cut", ["low", "mid"])
def test_a_kernel_that_cuts_second_derivatives_of_a_total_loss_is_refused(cut: str) -> None:
    solved = program(*PROGRAMS["top reads middle alone"], decay=0.3)
    plain = solved.losses[cut]
    solved.losses = {**solved.losses, cut: lambda p: plain(p) + Softplus.apply(p[cut]).sum()}
    with pytest.raises(
        GraphError, match=rf"second derivatives of the total loss of mid go through the loss of {cut}"
    ) as e:
        solved.gradient("top", exact("full"))
    assert "mid.hypergradient.nested=own_loss" in (e.value.fix or "")
    solved.gradient("top", exact("own_loss"))


class Sigmoid(torch.autograd.Function):
    """With a backward pass that is right, and cut off from further ones in silence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        slope = torch.sigmoid(x.detach())
        return grad * slope * (1 - slope)


class Twice(torch.autograd.Function):
    """Softplus with two right derivatives, whose third one is cut off in silence."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.softplus(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        return grad * Sigmoid.apply(x)


def test_a_kernel_that_cuts_third_derivatives_below_a_nested_problem_is_refused() -> None:
    solved = program(*PROGRAMS["top reads middle alone"], decay=0.3)
    plain = solved.losses["low"]

    def through(kernel: Any) -> None:
        solved.losses = {**solved.losses, "low": lambda p: plain(p) + 2 * kernel(3 * p["low"] * p["mid"].sum()).sum()}

    through(Twice.apply)
    with pytest.raises(GraphError, match="through the loss of low, whose third derivative") as caught:
        solved.gradient("top", exact("full"))
    assert "mid.hypergradient.nested=gauss_newton" in (caught.value.fix or "")
    solved.gradient("top", exact("gauss_newton"))
    through(F.softplus)
    assert relative(solved.gradient("top", exact("full")), solved.slope("top")) < 1e-6
