"""What a run tells its listeners, and the JSON it is written in."""

from __future__ import annotations

import json
import math

import pytest

from mlorun.run.events import Result
from mlorun.run.strict_json import encode


def test_a_result_has_exactly_the_promised_fields_and_not_the_error() -> None:
    result = Result(
        "failed",
        1,
        3,
        {"test/accuracy": 95.4},
        "ab",
        6.1,
        489.0,
        error=ValueError("no"),
        warnings=("low: 3 steps left out",),
    )
    assert result.as_json() == {
        "status": "failed",
        "exit_code": 1,
        "steps": 3,
        "metrics": {"test/accuracy": 95.4},
        "params_sha256": "ab",
        "wall_seconds": 6.1,
        "steps_per_second": 489.0,
        "warnings": ["low: 3 steps left out"],
        "metric_steps": {},
        "evaluated": [],
    }


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_become_text_that_float_reads_back(value: float) -> None:
    # a strict reader takes no NaN: parse_constant is called for the literals that are not JSON
    text = encode({"a": [value]})
    back = json.loads(text, parse_constant=lambda literal: pytest.fail(literal))["a"][0]
    assert isinstance(back, str)
    assert repr(float(back)) == repr(value)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 95.4])
def test_a_float_survives_to_the_last_bit(value: float) -> None:
    assert json.loads(encode(value)).hex() == value.hex()


def test_letters_of_any_alphabet_stay_as_they_are() -> None:
    assert encode({"é": "ж"}) == '{"é": "ж"}'
