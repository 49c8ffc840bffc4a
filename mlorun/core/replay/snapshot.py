"""A snapshot: what one micro-batch of a step saw, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mlorun.data.batches import map_tensors, packed, unpacked
from mlorun.hypergradient.vectors import Vector
from mlorun.run.generators import GeneratorState


@dataclass(frozen=True)
class Snapshot:
    """Enough to evaluate a loss again, bit for bit.

    batch        the micro-batch; None where it is not kept
    position     where its stream was before it, {"epoch": ..., "position": ...}; None for a batch of another origin
    generators   the random number generators before the evaluation
    buffers      every module's buffers before it
    modes        whether each module was in training mode
    step         global steps done before it
    """

    batch: Any
    position: Mapping[str, int] | None
    generators: GeneratorState
    buffers: Vector
    modes: tuple[bool, ...]
    step: int = 0

    def without_batch(self) -> Snapshot:
        """The same without the batch, where its stream can make it again."""
        return self if self.position is None else replace(self, batch=None)

    def to(self, dtype: torch.dtype, batch: Any) -> Snapshot:
        """The same with floating-point numbers in another precision, those of `batch` too."""
        return replace(
            self,
            batch=map_tensors(partial(cast, dtype), batch),
            position=None,
            buffers=tuple(cast(dtype, buffer) for buffer in self.buffers),
        )

    def pack(self) -> dict[str, Any]:
        """As plain containers, numbers and tensors; a batch that its stream can make again is left out."""
        return {
            "batch": None if self.position is not None else packed(self.batch),
            "position": None if self.position is None else dict(self.position),
            "generators": self.generators.pack(),
            "buffers": self.buffers,
            "modes": self.modes,
            "step": self.step,
        }

    @classmethod
    def unpack(cls, state: Mapping[str, Any]) -> Snapshot:
        """The inverse of `pack`."""
        return cls(
            unpacked(state["batch"]),
            state["position"],
            GeneratorState.unpack(state["generators"]),
            tuple(state["buffers"]),
            tuple(state["modes"]),
            state["step"],
        )


def cast(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """A floating-point tensor in another precision; any other as it is."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
