"""Metrics as a person reads them."""

from __future__ import annotations

import pytest

from mlorun.loggers.numbers import format_metric, listed


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("loss", 0.2134499, "0.2134"),
        ("loss", 0.5, "0.5000"),
        ("loss", 2.0, "2.000"),
        ("loss", 12345.0, "1.234e+04"),
        ("loss", 1234.0, "1234"),
        ("loss", 1e-7, "1.000e-07"),
        ("loss", float("nan"), "nan"),
        ("loss", float("-inf"), "-inf"),
        ("accuracy", 94.0, "94.00 %"),
        ("test/accuracy", 100.0, "100.00 %"),
        ("accuracy/loss", 1.0, "1.000"),
    ],
)
def test_numbers_have_four_digits_and_accuracies_two_decimals(name: str, value: float, said: str) -> None:
    assert format_metric(name, value) == said


def test_metrics_are_listed_in_their_own_order() -> None:
    assert listed({"loss": 1.0, "accuracy": 2.0}) == "loss 1.000  accuracy 2.00 %"
