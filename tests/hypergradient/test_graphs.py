"""Every estimator on other graphs: two uppers on one lower problem, two leaves under one upper, mixed choices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlorun.core.engine import Engine
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.schedule import Action
from mlorun.errors import ConfigError
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.forward import Forward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.neumann import Neumann
from mlorun.run import checkpoint
from mlorun.run.device import Precision
from mlorun.verify.oracles import CASES, Case, three_levels
from mlorun.verify.suite import ENTRIES, LR, STEPS, hypergradient, relative, series
from tests.hypergradient.stepping import execute, gradient_of_a_step

CPU = torch.device("cpu")


def definite(size: int, seed: int) -> Tensor:
    half = random(seed, size, size)
    return half @ half.T / size + torch.eye(size)


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def two_leaves() -> Case:
    """up steers left and right, and reads both."""
    h = {"left": definite(4, 1), "right": definite(3, 2)}
    b = {"left": random(3, 2, 4), "right": random(4, 2, 3)}
    lam, mixed = random(5, 2), random(6, 4, 3)
    rows = {name: -torch.linalg.solve(h[name], b[name].T @ lam) for name in h}

    def lower(name: str) -> Any:
        return lambda p: p[name] @ h[name] @ p[name] / 2 + p["up"] @ b[name] @ p[name]

    return Case(
        losses={
            "up": lambda p: p["left"] @ mixed @ p["right"] + p["left"].square().sum() + p["up"].square().sum() / 2,
            "left": lower("left"),
            "right": lower("right"),
        },
        points={"up": lam, **rows},
        graph=ProblemGraph.build(["up", "left", "right"], {"up": ["left", "right"]}),
        upper="up",
        direct=lam,
        cotangents={"left": mixed @ rows["right"] + 2 * rows["left"], "right": mixed.T @ rows["left"]},
        hessians=h,
        cross={name: {"up": b[name]} for name in h},
    )


def two_uppers() -> Case:
    """up and other both steer low and read it; the gradient of up."""
    h, b, c = definite(4, 11), random(12, 3, 4), random(13, 2, 4)
    lam, other = random(14, 3), random(15, 2)
    row = -torch.linalg.solve(h, b.T @ lam + c.T @ other)
    return Case(
        losses={
            "up": lambda p: (p["low"] - 1).square().sum() / 2,
            "other": lambda p: p["low"].square().sum() / 2,
            "low": lambda p: p["low"] @ h @ p["low"] / 2 + (p["up"] @ b + p["other"] @ c) @ p["low"],
        },
        points={"up": lam, "other": other, "low": row},
        graph=ProblemGraph.build(["up", "other", "low"], {"up": ["low"], "other": ["low"]}),
        upper="up",
        direct=torch.zeros(3),
        cotangents={"low": row - 1},
        hessians={"low": h},
        cross={"low": {"up": b}},
    )


def read_twice() -> Case:
    """up steers low, and reads it at first hand and by way of middle."""
    h = {"low": definite(4, 21), "middle": definite(3, 22)}
    b, e, lam = random(23, 2, 4), 2 * random(24, 4, 3), random(25, 2)
    low = -torch.linalg.solve(h["low"], b.T @ lam)
    middle = -torch.linalg.solve(h["middle"], e.T @ low)
    return Case(
        losses={
            "up": lambda p: ((p["low"] - 1).square().sum() + (p["middle"] - 1).square().sum()) / 2,
            "low": lambda p: p["low"] @ h["low"] @ p["low"] / 2 + p["up"] @ b @ p["low"],
            "middle": lambda p: p["middle"] @ h["middle"] @ p["middle"] / 2 + p["low"] @ e @ p["middle"],
        },
        points={"up": lam, "low": low, "middle": middle},
        graph=ProblemGraph.build(["up", "low", "middle"], {"up": ["low"]}, {"low": ["middle", "up"], "middle": ["up"]}),
        upper="up",
        direct=torch.zeros(2),
        cotangents={"low": low - 1, "middle": middle - 1},
        hessians=h,
        cross={"low": {"up": b}, "middle": {"low": e}},
    )


GRAPHS = {"two leaves": two_leaves, "two uppers": two_uppers, "a problem read twice": read_twice}


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("name", ENTRIES)
def test_every_estimator_is_right_on_every_graph(graph: str, name: str) -> None:
    case, entry = GRAPHS[graph](), ENTRIES[name]
    if graph == "a problem read twice" and name == "real_time":
        with pytest.raises(ConfigError, match="middle reads the optimum of low"):
            hypergradient(case, entry.make)
        return
    assert relative(hypergradient(case, entry.make), case.expected(entry.solve)) <= entry.bounds[torch.float64]


@pytest.mark.parametrize("upper", ["up", "other"])
def test_forward_mode_carries_the_tangents_of_every_upper_problem(upper: str) -> None:
    gradients = []
    for estimate in (Unrolled(None, "iterates"), Forward(10, kept=0.0)):
        engine = engine_of(two_uppers(), {"low": estimate})
        with torch.no_grad():
            engine.problems["low"].theta[0].add_(1.0)
        execute(engine, *(Action("low", starts=index == 0) for index in range(3)))
        gradients.append(engine.gradient(upper)[0])
    assert float(gradients[0].norm()) > 0.1
    assert relative(*gradients) < 1e-12


def engine_of(case: Case, chosen: dict[str, Hypergradient]) -> Engine:
    problems = case.problems(lambda: Unrolled(None, "iterates"), LR)
    for problem in problems:
        problem.hypergradient = chosen.get(problem.name, problem.hypergradient)
    return Engine(problems, case.graph, device=CPU, precision=Precision("fp32", CPU), train_iters=1)


def test_every_lower_problem_of_a_chain_may_have_an_estimator_of_its_own() -> None:
    case = three_levels()
    cg = Implicit(ConjugateGradient(30, 0.0, 1e-14, False), ForwardOverReverse(), "after", "full")
    engine = engine_of(case, {"fine": cg, "pre": Unrolled(None, "sqrt")})
    for name in ("pre", "fine"):
        execute(engine, *(Action(name, starts=index == 0) for index in range(STEPS)))
    (got,) = engine.gradient("s")

    theta = torch.linalg.solve(case.hessians["fine"], case.cotangents["fine"])
    v = -case.cross["fine"]["pre"] @ theta
    wanted = -case.cross["pre"]["s"] @ series(STEPS)(case.hessians["pre"], v)
    assert relative(got, wanted) < 1e-8


@pytest.mark.parametrize("name", [*ENTRIES, "stand-in"])
def test_what_an_estimator_carries_is_part_of_the_checkpoint_and_comes_back(name: str, tmp_path: Any) -> None:
    def estimate() -> Hypergradient:
        if name == "stand-in":
            return Implicit(Neumann(2, "auto"), ForwardOverReverse(), "after", "full")
        return ENTRIES[name].make()

    def prepared() -> Engine:
        engine = engine_of(CASES["Q1 quadratic"](), {"low": estimate()})
        execute(engine, Action("low", starts=True))
        return engine

    def gradient(engine: Engine) -> Tensor:
        return gradient_of_a_step(engine, "up")[0]

    first = prepared()
    for _ in range(2):
        gradient(first)
    file = checkpoint.save(tmp_path, 0, first.state_dict())
    later = prepared()
    later.adjoint.load_state_dict(checkpoint.load(file)["adjoint"])
    assert torch.equal(gradient(first), gradient(later))
    if name in ("soba", "evolution", "f2sa"):
        assert not torch.equal(gradient(first), gradient(prepared())), "nothing was carried"
