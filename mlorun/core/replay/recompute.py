"""Losses without torch.utils.checkpoint: what it leaves out would be computed again when other parameters are in place.

`checkpoint` runs its function again during a backward pass. A replayed loss is differentiated after the program's own
parameters are back, so that the second run would read these. And with use_reentrant=True the parameters that the
function reads get no gradient at all where the inputs of a backward pass are named, as they are here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.utils._pytree import tree_leaves

_MODULE = torch.utils.checkpoint
# what `checkpoint` looks up when it is called: for use_reentrant=False (older versions of torch lack the first name),
# and for use_reentrant=True
_GENERATORS = tuple(
    name
    for name in ("_checkpoint_without_reentrant_generator_impl", "_checkpoint_without_reentrant_generator")
    if hasattr(_MODULE, name)
)
_REENTRANT = "CheckpointFunction"
_UNKNOWN = (
    "this version of torch has a torch.utils.checkpoint mlorun does not know, so that a loss that recomputes cannot "
    "be evaluated again at other parameters: take checkpoint out of the lower losses"
)


def _kept(*args: Any, **kwargs: Any) -> Iterator[None]:
    """In place of the generator around a checkpointed function: nothing before it, nothing after."""
    yield


class _Plain:
    """In place of the function with use_reentrant=True."""

    def __init__(self, apply: Callable[..., Any]) -> None:
        self.apply = apply


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """Inside, torch.utils.checkpoint calls its function, and keeps what it computes."""
    if not _GENERATORS or not hasattr(_MODULE, _REENTRANT):
        with torch.autograd.graph.disable_saved_tensors_hooks(_UNKNOWN):
            yield
        return
    plain = _Plain(lambda function, preserve_rng_state, *args: function(*args))
    with _replaced({**dict.fromkeys(_GENERATORS, _kept), _REENTRANT: plain}):
        yield


@contextmanager
def reentrant_calls(see: Callable[[str], None]) -> Iterator[None]:
    """Inside, `see` is called with "FILE:LINE" where use_reentrant=True hides trainable parameters or inputs."""
    if not hasattr(_MODULE, _REENTRANT):
        yield
        return

    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        outputs = function(*args)
        # a frozen part needs no gradient, and under no_grad there is none
        if any(isinstance(t, Tensor) and t.requires_grad for t in tree_leaves(outputs)):
            see(_caller(sys._getframe(1)))
        return outputs

    with _replaced({_REENTRANT: _Plain(apply)}):
        yield


@contextmanager
def _replaced(objects: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(_MODULE, name) for name in objects}
    try:
        for name, value in objects.items():
            setattr(_MODULE, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(_MODULE, name, value)


def _caller(frame: FrameType | None) -> str:
    """The nearest line outside of torch."""
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] == "torch":
        frame = frame.f_back
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"
