"""A state as two halves: named live tensors on one side, plain data on the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def live_tensors(state: Any, prefix: str = "") -> dict[str, Tensor]:
    """Every tensor of a nested state, by its path: {"problems/classifier/module/0.weight": ...}. Nothing is copied."""
    if isinstance(state, Tensor):
        return {prefix: state}
    tensors: dict[str, Tensor] = {}
    for key, value in _items(state):
        tensors |= live_tensors(value, f"{prefix}/{key}" if prefix else str(key))
    return tensors


def plain_data(state: Any) -> Any:
    """The same nesting with None for every tensor: numbers, texts and containers."""
    if isinstance(state, Tensor):
        return None
    if isinstance(state, Mapping):
        return {key: plain_data(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(plain_data(value) for value in state)
    return state


def _items(state: Any) -> list[tuple[Any, Any]]:
    if isinstance(state, Mapping):
        return list(state.items())
    return list(enumerate(state)) if isinstance(state, list | tuple) else []
