"""The oracle suite: every bound holds, and a mistake is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mlorun.cli import main
from mlorun.config.locations import options
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.vectors import Vector
from mlorun.verify import suite

# those without an oracle of this kind: their own tests prove them
ELSEWHERE = {"none", "reinforce", "bome"}


class TwiceAsMuch(Identity):
    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[Vector, Any]:
        return vectors.scale(v, 1.001), None


def test_every_bound_of_the_suite_holds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify"]) == 0
    text = capsys.readouterr().out
    assert "bounds hold" in text and "broken" not in text
    assert torch.get_default_dtype() == torch.float32


def test_every_hypergradient_that_can_be_chosen_is_in_the_suite() -> None:
    assert set(options("hypergradient")) - ELSEWHERE == set(suite.ENTRIES)


def test_a_wrong_estimator_breaks_its_bound(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = suite.ENTRIES["t1t2"]
    wrong = replace(right, make=lambda: Implicit(TwiceAsMuch(1.0), ForwardOverReverse(), "after", "full"))
    monkeypatch.setattr(suite, "ENTRIES", {"t1t2": wrong})
    assert main(["verify"]) == 1
    assert "broken: t1t2 on Q1" in capsys.readouterr().out
