"""The state of every random number generator that a loss may draw from: torch's, the device's, Python's and NumPy's."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, final

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


@final
class OwnGenerators:
    """The global generators as one owner's alone: where they were when it last had them, whatever others do meanwhile.

    Taking them is free while nobody else has. Several owners may take turns; the caller, who has them when no owner
    does, finds them where they were.
    """

    _holder: ClassVar[OwnGenerators | None] = None
    _callers: ClassVar[GeneratorState | None] = None

    def __init__(self, state: GeneratorState, device: torch.device) -> None:
        self._state = state
        self._device = device

    def take(self) -> None:
        """The global generators are this owner's from now on."""
        holder = OwnGenerators._holder
        if holder is self:
            return
        if holder is None:
            OwnGenerators._callers = read(self._device)
        else:
            holder._state = read(holder._device)
        write(self._state, self._device)
        OwnGenerators._holder = self

    def release(self) -> None:
        """They are the caller's again, where the caller left them."""
        if OwnGenerators._holder is not self:
            return
        self._state = read(self._device)
        OwnGenerators._holder = None
        if OwnGenerators._callers is not None:
            write(OwnGenerators._callers, self._device)

    def put(self, state: GeneratorState) -> None:
        """This owner's generators are there from now on."""
        self._state = state
        if OwnGenerators._holder is self:
            write(state, self._device)

    @contextmanager
    def held(self) -> Iterator[None]:
        """This owner's inside, and at the end whose they were."""
        before = OwnGenerators._holder
        self.take()
        try:
            yield
        finally:
            if before is None:
                self.release()
            elif before is not self:
                before.take()

    @property
    def state(self) -> GeneratorState:
        """Where this owner's generators are now."""
        return read(self._device) if OwnGenerators._holder is self else self._state
