"""All modules as one pure function: the loss of any problem at any parameters, replayed as its step saw it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mlorun.core.program.clock import Clock
from mlorun.core.program.problem import Problem, loss_of
from mlorun.core.replay.recompute import without_checkpointing
from mlorun.core.replay.snapshot import Snapshot, cast
from mlorun.errors import GraphError
from mlorun.hypergradient.inner_loop import Values
from mlorun.hypergradient.vectors import Vector
from mlorun.run import generators
from mlorun.run.generators import GeneratorState

# a place that holds a tensor: a module's _parameters or _buffers, and the key in it
Slot = tuple[dict[str, Any], str]


class FunctionalProgram:
    """The modules of every problem, where each tensor is kept, and the state that a loss may move on the way.

    Tensors are put in by writing to the modules' own parameter and buffer tables, as torch.func.functional_call does,
    but for all modules at once: a loss calls its own module and those of other problems.
    """

    def __init__(self, problems: Mapping[str, Problem], device: torch.device) -> None:
        self.problems = problems
        self.device = device
        self.clock = Clock()
        for problem in problems.values():
            problem.clock = self.clock
        roots = {id(problem.module): problem.module for problem in problems.values()}
        self._modules: tuple[nn.Module, ...] = tuple(
            {id(m): m for root in roots.values() for m in root.modules()}.values()
        )
        self._live = {name: problem.theta for name, problem in problems.items()}
        self._slots = {name: self._parameter_slots(problem) for name, problem in problems.items()}
        self._buffers = self._buffer_slots()
        self._replaying = False
        self._latest: GeneratorState | None = None
        self._host = True

    def leave_host_generators(self) -> None:
        """From now on Python's and NumPy's generators are not replayed: no loss draws from them."""
        self._host = False

    def keep_host_generators(self) -> None:
        """From now on they are replayed: some loss may draw from them after all."""
        self._host = True

    def theta(self, name: str) -> Vector:
        """The live trainable parameters of one problem."""
        return self._live[name]

    def snapshot(self, batch: Any, position: Mapping[str, int] | None) -> Snapshot:
        """The present, as the coming evaluation of a loss on `batch` will see it. Copies buffers and generators.

        position   where the stream was before the batch, if the stream can make it again
        """
        buffers = tuple(table[key].clone() for ((table, key), *_) in self._buffers)
        state = self._generators()
        if self._latest is not None and _same(state, self._latest):
            state = self._latest  # many snapshots of one inner loop share one state
        self._latest = state
        modes = tuple(m.training for m in self._modules)
        return Snapshot(batch, position, state, buffers, modes, self.clock.step)

    def batch(self, name: str, snapshot: Snapshot) -> Any:
        """The micro-batch that a step of `name` saw, made again where it is not kept."""
        stream = self.problems[name].stream
        if snapshot.batch is not None or snapshot.position is None or stream is None:
            return snapshot.batch
        return stream.at(snapshot.position)

    def loss(self, name: str, snapshots: Sequence[Snapshot], values: Values) -> Tensor:
        """The mean loss of `name` over micro-batches, (), each as its snapshot saw it, with `values` put in.

        Call under `replay`. Autocast is off: curvature and differences want the parameters' own precision.
        """
        problem = self.problems[name]
        total: Tensor | None = None
        with self.substituted(values), self._plain():
            for snapshot in snapshots:
                batch = self.batch(name, snapshot)
                self._enter(snapshot)
                loss = loss_of(problem.training_step(batch), name)
                total = loss if total is None else total + loss
        assert total is not None, f"{name} has taken no step yet"
        return total if len(snapshots) == 1 else total / len(snapshots)

    @contextmanager
    def parameters_as(self, dtype: torch.dtype) -> Iterator[None]:
        """Every parameter in another precision, detached; frozen ones too. Buffers come with a snapshot."""
        slots = [(m._parameters, key, p) for m in self._modules for key, p in m._parameters.items() if p is not None]
        copies = {id(p): cast(dtype, p.detach()) for _, _, p in slots}
        try:
            for table, key, parameter in slots:
                table[key] = copies[id(parameter)]  # type: ignore[assignment]
            yield
        finally:
            for table, key, parameter in slots:
                table[key] = parameter

    @contextmanager
    def _plain(self) -> Iterator[None]:
        """With gradients, and without autocast, recomputation and compiled graphs."""
        with torch.enable_grad(), self._without_autocast(), without_checkpointing(), _without_compiling():
            yield

    def _without_autocast(self) -> AbstractContextManager[Any]:
        kind = self.device.type
        return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()

    @contextmanager
    def replay(self) -> Iterator[None]:
        """Whatever evaluations inside do to buffers, generators and module modes is undone at the end, bit for bit.

        One inside another does nothing: the one outside undoes it all, once.
        """
        if self._replaying:
            yield
            return
        self._check_parameters()
        self._replaying = True
        state, step = self._generators(), self.clock.step
        modes = tuple(m.training for m in self._modules)
        kept = [table[key] for ((table, key), *_) in self._buffers]
        try:
            yield
        finally:
            self._replaying = False
            generators.write(state, self.device)
            self.clock.step = step
            self._set_modes(modes)
            self._set_buffers(kept)

    def _check_parameters(self) -> None:
        """Raise GraphError where a module holds another parameter than it did at the start."""
        for name, slots in self._slots.items():
            for places, parameter in zip(slots, self._live[name], strict=True):
                for table, key in places:
                    if table.get(key) is not parameter:
                        raise GraphError(
                            f"the parameter {key!r} of {name}, of shape {tuple(parameter.shape)}, was replaced by "
                            "another tensor after the start: the optimizer trains one that its loss does not read",
                            where=f"problems.{name}.module",
                            fix="write into it: with torch.no_grad(): parameter.copy_(...)",
                        )

    @contextmanager
    def substituted(self, values: Values) -> Iterator[None]:
        """These tensors in place of the parameters of these problems."""
        try:
            for name, vector in values.items():
                self._put(name, vector)
            yield
        finally:
            for name in values:
                self._put(name, self._live[name])

    def _put(self, name: str, vector: Vector) -> None:
        for slots, tensor in zip(self._slots[name], vector, strict=True):
            for table, key in slots:
                table[key] = tensor
        self.problems[name].theta = vector

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

    def _enter(self, snapshot: Snapshot) -> None:
        # clones, because a loss may move its buffers in place, and the snapshot serves many evaluations
        self._set_buffers([buffer.clone() for buffer in snapshot.buffers])
        self._set_modes(snapshot.modes)
        self.clock.step = snapshot.step
        generators.write(snapshot.generators, self.device)

    def _generators(self) -> GeneratorState:
        return generators.read(self.device, host=self._host)

    def _set_modes(self, modes: Sequence[bool]) -> None:
        for module, training in zip(self._modules, modes, strict=True):
            if module.training != training:
                module.training = training

    def _set_buffers(self, tensors: Sequence[Tensor]) -> None:
        for slots, tensor in zip(self._buffers, tensors, strict=True):
            for table, key in slots:
                table[key] = tensor

    def _parameter_slots(self, problem: Problem) -> tuple[tuple[Slot, ...], ...]:
        slots: dict[int, list[Slot]] = {id(p): [] for p in problem.theta}
        for module in self._modules:
            for key, parameter in module._parameters.items():
                if id(parameter) in slots:
                    slots[id(parameter)].append((module._parameters, key))
        if not all(slots.values()):
            raise GraphError(
                f"{problem.name} trains a parameter that belongs to no problem's module",
                where=f"problems.{problem.name}",
                fix="return parameters of the problems' modules from trainable_parameters",
            )
        return tuple(tuple(slots[id(p)]) for p in problem.theta)

    def _buffer_slots(self) -> tuple[tuple[Slot, ...], ...]:
        holders: dict[int, list[Slot]] = {}
        for module in self._modules:
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    holders.setdefault(id(buffer), []).append((module._buffers, key))
        return tuple(tuple(slots) for slots in holders.values())


def _without_compiling() -> AbstractContextManager[Any]:
    """Inside, what torch.compile made runs as it was written: compiled graphs have first derivatives alone."""
    # set_stance loads all of torch's compiler, which takes seconds: only where something has been compiled
    dynamo = sys.modules.get("torch._dynamo.utils")
    compiled = dynamo is not None and bool(dynamo.counters["frames"])
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _same(one: GeneratorState, other: GeneratorState) -> bool:
    """Whether two states of the CPU are equal, where that is all there is; free of waiting for a device."""
    alone = one.device is None and other.device is None and one.host is None and other.host is None
    return alone and torch.equal(one.cpu, other.cpu)
