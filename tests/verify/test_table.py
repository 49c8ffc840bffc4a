"""The tables of verify on terminals of any width: a number is never cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rich.console import Console

from mlorun.verify.comparison import Comparison
from mlorun.verify.point import Cost
from mlorun.verify.program import EdgeReport, PointReport
from mlorun.verify.suite import ENTRIES, Cell
from mlorun.verify.table import show_comparison, show_point, show_suite
from mlorun.verify.verdict import WRONG_WAY, Verdict

CASES = ("Q1 quadratic", "Q2 ridge", "Q3 weighted ridge", "Q4 three levels", "Q5 diamond", "Q6 MAML", "Q7 logistic")
EDGE = EdgeReport(
    upper="reweight",
    lower="classifier",
    to="reweight",
    estimator="Identity x CentralDifference",
    error=1.125,
    bound=1e-2,
    off_ift=3.64,
    cosine=-0.8573,
    norm=2.71,
    solved=False,
)
WRONG = Verdict(WRONG_WAY, "points the wrong way (cosine -0.86)", ("for a reason",))
POINT = PointReport(1, "reweight", (EDGE,), Cost(1e-3, 1000), 5e-4, (), ("classifier: itself",), ("solved",), (), WRONG)


def shown(width: int, show: Any, *arguments: Any) -> str:
    console = Console(width=width, highlight=False)
    with console.capture() as caught:
        show(console, *arguments)
    return caught.get()


def suite_numbers() -> list[Cell]:
    return [
        Cell(estimator=name, case=case, dtype=dtype, error=3e-15, bound=1e-8, by_design=7.0, seconds=0.0)
        for name in ENTRIES
        for case in CASES
        for dtype in (torch.float64, torch.float32)
    ]


@pytest.mark.parametrize("width", [80, 130])
def test_the_suite_fits_a_terminal_and_no_number_is_cut(width: int) -> None:
    text = shown(width, show_suite, suite_numbers())
    assert "\u2026" not in text
    rows = [line for line in text.splitlines() if line.split(" ")[0] in ENTRIES]
    assert len(rows) == len(ENTRIES)
    assert all(row.split()[1:] == [*["3e-15"] * 7, "1e-08", "3e-15", "1e-08", "7e+00"] for row in rows)
    assert max(map(len, rows)) <= width


@pytest.mark.parametrize("width", [80, 130])
def test_a_point_fits_a_terminal_and_no_number_is_cut(width: int) -> None:
    text = shown(width, show_point, POINT)
    assert all(word in text for word in ("reweight <- classifier", "Identity x CentralDifference", "1.1e+00 !"))
    assert "1.0e-02" in text and "~3.6e+00" in text and "~-0.8573" in text and "2.7e+00" in text


def test_a_terminal_that_is_too_narrow_still_gets_every_number(capsys: pytest.CaptureFixture[str]) -> None:
    show_point(Console(width=30, highlight=False), POINT)
    show_comparison(Console(width=20, highlight=False), [Comparison("t1t2", 0.5, 0.99, 1.5, Cost(1e-3, 0))], 1e-3)
    text = capsys.readouterr().out
    assert "\u2026" not in text and "1.1e+00 !" in text and "~3.6e+00" in text and "5.0e-01" in text
