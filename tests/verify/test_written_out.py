"""The references of penalty methods, evolution and update maps find a mistake, and share nothing with them."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mlorun
from mlorun.hypergradient import vectors
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.penalty import BOME, F2SA
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector
from mlorun.verify import written_out
from mlorun.verify.point import VerificationPoint, relative_error
from mlorun.verify.program import examine, points
from mlorun.verify.reference import definition
from mlorun.verify.second_derivatives import second_derivatives

pytestmark = pytest.mark.usefixtures("empty_folder")

SMALL = ["experiment=mwn_digits", "classifier.module.sizes=[64,10]", "engine.train_iters=10"]
LOWER = "classifier"
ADAM = "classifier.optimizer=adam"
KINDS: dict[str, Callable[..., Hypergradient]] = {
    "f2sa": F2SA, "bome": BOME, "evolution": Evolution, "update_map": UpdateMap
}  # fmt: skip


@pytest.mark.parametrize("experiment", [SMALL, [*SMALL, ADAM], ["experiment=hpo_digits"]], ids=["sgd", "adam", "hpo"])
@pytest.mark.parametrize("option", KINDS)
def test_each_agrees_with_its_formula_written_out(option: str, experiment: list[str]) -> None:
    if "hpo" in experiment[0] and option in ("f2sa", "bome"):
        pytest.skip("they do not differentiate through options of the optimizer")
    few = [f"{LOWER}.hypergradient.samples=2"] if option == "evolution" else []
    overrides = [*experiment, f"{LOWER}.hypergradient={option}", *few]
    engine = mlorun.build(mlorun.compose(overrides), record_all=True)
    for _, point, _ in points(engine, 2, 10):  # the second with what the estimator has kept
        own = problem_estimate(point)
        written = definition(engine.problems[LOWER], second_derivatives(point.levels()[LOWER])).estimate
        assert type(own) is not type(written)
        got, wanted = (point.reference({LOWER: each}, point.carries) for each in (own, written))
        edge = (LOWER, point.upper)
        assert relative_error(got[edge], wanted[edge]) < 1e-6, "in float64"


def problem_estimate(point: VerificationPoint) -> Hypergradient:
    """Of the one lower problem."""
    estimate = point.engine.problems[LOWER].hypergradient
    assert estimate is not None
    return estimate


@pytest.mark.parametrize("option", KINDS)
def test_a_mistake_of_five_percent_breaks_the_bound(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind: Any = KINDS[option]
    right = kind.__call__

    def wrong(self: Any, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], Any]:
        parts, after = right(self, level, v, carry)
        return {name: vectors.scale(part, 1.05) for name, part in parts.items()}, after

    monkeypatch.setattr(kind, "__call__", wrong)  # in every precision
    engine = mlorun.build(mlorun.compose([*SMALL, f"classifier.hypergradient={option}"]), record_all=True)
    step, point, _ = next(iter(points(engine, 1, 1)))
    made = examine(step, point)
    assert made.edges[0].error == pytest.approx(0.05, abs=0.02)
    assert not any("rounding" in line for line in made.explanations), "float64 has the mistake, too"


def test_the_references_use_no_function_of_the_estimators() -> None:
    tree = ast.parse(Path(written_out.__file__).read_text(encoding="utf-8"))
    names = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and ".estimators." in node.module
        for alias in node.names
    }
    assert names == {"Evolution", "BOME", "F2SA", "UpdateMap"}, "the options of these alone are read"
    assert torch.get_default_dtype() == torch.float32
