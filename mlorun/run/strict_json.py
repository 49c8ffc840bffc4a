"""JSON that every reader accepts, with the same bytes for the same values. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def encode(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON. A float is its shortest exact decimal.

    NaN and the infinities, which JSON lacks, become the strings "NaN", "Infinity" and "-Infinity":
    `float()` in Python and `Number()` in JavaScript read them back.
    """
    return json.dumps(_strict(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    return value
