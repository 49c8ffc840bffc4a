"""The state of every random number generator that a loss may draw from: torch's, the device's, Python's and NumPy's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlorun.run.seeds import seed_everything


@dataclass(frozen=True)
class GeneratorState:
    """Where the generators were.

    cpu      torch's on the CPU
    device   torch's on the device; None on the CPU
    host     Python's and NumPy's; None where they were left out
    """

    cpu: Tensor
    device: Tensor | None = None
    host: tuple[Any, Any] | None = None

    def pack(self) -> dict[str, Any]:
        """As plain containers, numbers and tensors."""
        host = None
        if self.host is not None:
            python, (kind, words, *rest) = self.host
            host = {"python": python, "numpy": (kind, torch.from_numpy(words.astype(np.int64)), *rest)}
        return {"cpu": self.cpu, "device": self.device, "host": host}

    @classmethod
    def unpack(cls, packed: Mapping[str, Any]) -> GeneratorState:
        """The inverse of `pack`."""
        host = None
        if packed["host"] is not None:
            version, words, gauss = packed["host"]["python"]
            kind, array, *rest = packed["host"]["numpy"]
            numpy_state = (kind, array.cpu().numpy().astype(np.uint32), *rest)
            host = ((version, tuple(words), gauss), numpy_state)
        device = packed["device"]
        return cls(packed["cpu"].cpu(), None if device is None else device.cpu(), host)


def read(device: torch.device, *, host: bool = True) -> GeneratorState:
    """The present state, of Python's and NumPy's generators too if `host`."""
    on_device = None
    if device.type == "cuda":
        on_device = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        on_device = torch.mps.get_rng_state()
    return GeneratorState(
        torch.get_rng_state(), on_device, (random.getstate(), np.random.get_state()) if host else None
    )


def write(state: GeneratorState, device: torch.device) -> None:
    """Put the generators where `state` says."""
    torch.set_rng_state(state.cpu)
    if state.device is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state.device, device)
    elif state.device is not None:
        torch.mps.set_rng_state(state.device)
    if state.host is not None:
        random.setstate(state.host[0])
        np.random.set_state(state.host[1])


@contextmanager
def preserved(device: torch.device) -> Iterator[None]:
    """Whatever the block draws or seeds, the generators are put back at its end."""
    before = read(device)
    try:
        yield
    finally:
        write(before, device)


def seeded(seed: int, device: torch.device) -> GeneratorState:
    """The state right after everything has been seeded; the generators themselves stay where they are."""
    with preserved(device):
        seed_everything(seed)
        return read(device)
