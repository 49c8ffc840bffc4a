"""All modules under one roof: the loss of any problem as a pure function of parameters, replayed as its step saw it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlorun.core.problem import Problem, loss_of
from mlorun.data.batches import map_tensors
from mlorun.errors import GraphError
from mlorun.hypergradient.trajectory import Values
from mlorun.hypergradient.vectors import Vector

# a place that holds a tensor: a module's _parameters or _buffers, and the key in it
Slot = tuple[dict[str, Any], str]
# torch on the CPU; the device's; Python's and NumPy's
RngStates = tuple[Tensor, Tensor | None, tuple[Any, Any] | None]


@dataclass(frozen=True)
class Moment:
    """What one micro-batch of a step saw: enough to evaluate its loss again, bit for bit."""

    batch: Any
    rng: RngStates
    buffers: Vector
    modes: tuple[bool, ...]
    fetch: Callable[[], Any] | None = None  # makes the batch again, where it is not kept

    def recall(self) -> Any:
        """The batch."""
        return self.batch if self.fetch is None else self.fetch()

    def to(self, dtype: torch.dtype) -> Moment:
        """The same moment with floating-point numbers in another precision."""
        return Moment(
            map_tensors(partial(cast, dtype), self.recall()),
            self.rng,
            tuple(cast(dtype, buffer) for buffer in self.buffers),
            self.modes,
        )

    def thrifty(self, fetch: Callable[[], Any]) -> Moment:
        """The same moment without its batch."""
        return replace(self, batch=None, fetch=fetch)


class World:
    """The modules of every problem, where each tensor is kept, and the state that a loss may move on the way.

    Tensors are put in by writing to the modules' own parameter and buffer tables, as torch.func.functional_call does,
    but for all modules at once: a loss calls its own module and those of other problems.
    """

    def __init__(self, problems: Mapping[str, Problem], device: torch.device) -> None:
        self.problems = problems
        self.device = device
        roots = {id(problem.module): problem.module for problem in problems.values()}
        self._modules: tuple[nn.Module, ...] = tuple(
            {id(m): m for root in roots.values() for m in root.modules()}.values()
        )
        self._slots = {name: self._parameter_slots(problem) for name, problem in problems.items()}
        self._buffers = self._buffer_slots()
        self._replaying = False
        self._latest: RngStates | None = None
        self.host_rng = True  # whether losses draw from Python's or NumPy's generator; the probe finds out

    def theta(self, name: str) -> Vector:
        """The live trainable parameters of one problem."""
        return self.problems[name].theta

    def moment(self, batch: Any) -> Moment:
        """The present, as the coming evaluation of a loss on `batch` will see it. Copies buffers and RNG states."""
        buffers = tuple(table[key].clone() for ((table, key), *_) in self._buffers)
        rng = self._rng()
        if self._latest is not None and _same(rng, self._latest):
            rng = self._latest  # many moments of one loop share one state
        self._latest = rng
        return Moment(batch, rng, buffers, tuple(m.training for m in self._modules))

    def loss(self, name: str, moments: Sequence[Moment], values: Values) -> Tensor:
        """The mean loss of `name` over micro-batches, (), each as its moment saw it, with `values` put in.

        Call under `replay`. Autocast is off: curvature and differences want the parameters' own precision.
        """
        problem = self.problems[name]
        total: Tensor | None = None
        with self.substituted(values), torch.enable_grad(), self._without_autocast():
            for moment in moments:
                self._enter(moment)
                loss = loss_of(problem.training_step(moment.recall()), name)
                total = loss if total is None else total + loss
        assert total is not None, f"{name} has taken no step yet"
        return total if len(moments) == 1 else total / len(moments)

    @contextmanager
    def parameters_as(self, dtype: torch.dtype) -> Iterator[None]:
        """Every parameter in another precision, detached; frozen ones too. Buffers come with a moment."""
        slots = [(m._parameters, key, p) for m in self._modules for key, p in m._parameters.items() if p is not None]
        copies = {id(p): cast(dtype, p.detach()) for _, _, p in slots}
        try:
            for table, key, parameter in slots:
                table[key] = copies[id(parameter)]  # type: ignore[assignment]
            yield
        finally:
            for table, key, parameter in slots:
                table[key] = parameter

    def _without_autocast(self) -> AbstractContextManager[Any]:
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Whatever evaluations inside do to buffers, RNGs and module modes is undone at the end, bit for bit.

        One inside another does nothing: the outer one undoes it all, once.
        """
        if self._replaying:
            yield
            return
        self._replaying = True
        rng = self._rng()
        modes = tuple(m.training for m in self._modules)
        kept = [table[key] for ((table, key), *_) in self._buffers]
        try:
            yield
        finally:
            self._replaying = False
            self._set_rng(rng)
            self._set_modes(modes)
            self._set_buffers(kept)

    @contextmanager
    def substituted(self, values: Values) -> Iterator[None]:
        """These tensors in place of the parameters of these problems."""
        try:
            for name, vector in values.items():
                for slots, tensor in zip(self._slots[name], vector, strict=True):
                    for table, key in slots:
                        table[key] = tensor
            yield
        finally:
            for name in values:
                for slots, parameter in zip(self._slots[name], self.problems[name].theta, strict=True):
                    for table, key in slots:
                        table[key] = parameter

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Every module in eval mode, without gradients, and random numbers as they were at the end."""
        with self.replay(), torch.no_grad():
            self.scratch_buffers()
            self._set_modes((False,) * len(self._modules))
            yield

    def scratch_buffers(self) -> None:
        """Clones in place of every buffer, for losses to move. Call under `replay`, which puts the real ones back."""
        self._set_buffers([table[key].clone() for ((table, key), *_) in self._buffers])

    def _enter(self, moment: Moment) -> None:
        # clones, because a loss may move its buffers in place, and the moment serves many evaluations
        self._set_buffers([buffer.clone() for buffer in moment.buffers])
        self._set_modes(moment.modes)
        self._set_rng(moment.rng)

    def _rng(self) -> RngStates:
        device = None
        if self.device.type == "cuda":
            device = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            device = torch.mps.get_rng_state()
        host = (random.getstate(), np.random.get_state()) if self.host_rng else None
        return torch.get_rng_state(), device, host

    def _set_rng(self, states: RngStates) -> None:
        cpu, device, host = states
        torch.set_rng_state(cpu)
        if device is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(device, self.device)
        elif device is not None:
            torch.mps.set_rng_state(device)
        if host is not None:
            random.setstate(host[0])
            np.random.set_state(host[1])

    def _set_modes(self, modes: Sequence[bool]) -> None:
        for module, training in zip(self._modules, modes, strict=True):
            if module.training != training:
                module.training = training

    def _set_buffers(self, tensors: Sequence[Tensor]) -> None:
        for slots, tensor in zip(self._buffers, tensors, strict=True):
            for table, key in slots:
                table[key] = tensor

    def _parameter_slots(self, problem: Problem) -> tuple[tuple[Slot, ...], ...]:
        found: dict[int, list[Slot]] = {id(p): [] for p in problem.theta}
        for module in self._modules:
            for key, parameter in module._parameters.items():
                if id(parameter) in found:
                    found[id(parameter)].append((module._parameters, key))
        if not all(found.values()):
            raise GraphError(
                f"{problem.name} trains a parameter that belongs to no problem's module",
                where=f"problems.{problem.name}",
                fix="return parameters of the problems' modules from trainable_parameters",
            )
        return tuple(tuple(found[id(p)]) for p in problem.theta)

    def _buffer_slots(self) -> tuple[tuple[Slot, ...], ...]:
        found: dict[int, list[Slot]] = {}
        for module in self._modules:
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    found.setdefault(id(buffer), []).append((module._buffers, key))
        return tuple(tuple(slots) for slots in found.values())


def cast(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """A floating-point tensor in another precision; any other as it is."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _same(one: RngStates, other: RngStates) -> bool:
    """Whether two states of the CPU are equal, where that is all there is; free of waiting for a device."""
    return one[1] is None and other[1] is None and one[2] is None and other[2] is None and torch.equal(one[0], other[0])
