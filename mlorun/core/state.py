"""A state as two halves: named live tensors on one side, plain data on the other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
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


def on_host(state: Any) -> Any:
    """The same nesting with copies of its tensors on the CPU; a tensor that stands in several places is copied once."""
    copies: dict[int, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in copies:
                copies[id(value)] = value.detach().to("cpu", copy=True)
            return copies[id(value)]
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(copied(item) for item in value)
        return value

    return copied(state)


def chosen(first: Tensor, one: Any, other: Any) -> Any:
    """Of two nested states of one shape, the tensors of `one` where `first`, (), is true, else those of `other`;
    everything else is that of `one`. Nobody waits for the device."""
    if isinstance(one, Tensor):
        fits = isinstance(other, Tensor) and other.shape == one.shape and other.device == first.device == one.device
        return torch.where(first, one, other) if fits else one
    if isinstance(one, Mapping):
        return {key: chosen(first, value, other[key]) if key in other else value for key, value in one.items()}
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return type(one)(chosen(first, *pair) for pair in zip(one, other, strict=True))
    return one


def broken_tensors(state: Any) -> list[str]:
    """The paths of tensors in which some number is NaN or infinite. One wait for the device."""
    tensors = {path: t for path, t in live_tensors(state).items() if t.is_floating_point() and t.numel()}
    if not tensors:
        return []
    # 0 * x is 0, but for NaN and the infinities
    sums = [(0.0 * t.detach()).sum().float().reshape(()) for t in tensors.values()]
    device = sums[0].device
    flags = torch.stack([one.to(device) for one in sums]).isnan().tolist()
    return [path for path, broken in zip(tensors, flags, strict=True) if broken]


def _items(state: Any) -> list[tuple[Any, Any]]:
    if isinstance(state, Mapping):
        return list(state.items())
    return list(enumerate(state)) if isinstance(state, list | tuple) else []
