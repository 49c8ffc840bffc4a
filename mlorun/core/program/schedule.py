"""Graph and update schedules to a flat plan: who steps, in what order. No torch.

The rules, simulated here once, so that the engine needs no counters, flags or recursion:

1. A global step steps every leaf once, in declared order. A step is one micro-batch; every `gradient_accumulation`-th
   step of a problem is an optimizer step.
2. Past `warmup_steps` optimizer steps, every `unroll_steps`-th optimizer step of a problem makes it due for each of its
   uppers. A problem steps as soon as all its lowers are due for it, and that uses their dues up.
3. An inner loop of a problem starts with its first step past warm-up, and again after any of its uppers has stepped.
4. With `roll_back`, once the uppers have stepped, the problem returns to where its inner loop started and repeats the
   steps of it; repeated steps make nobody due.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from mlorun.core.program.graph import ProblemGraph
from mlorun.errors import GraphError

_LONGEST_CYCLE = 100_000
_WORTH_SKIPPING = 1000  # global steps of a warm-up that repeats itself


@dataclass(frozen=True)
class UpdateSchedule:
    """How often a problem steps. `unroll_steps` and `warmup_steps` count optimizer steps."""

    unroll_steps: int = 1
    warmup_steps: int = 0
    gradient_accumulation: int = 1  # micro-batches per optimizer step
    roll_back: bool = False


@dataclass(frozen=True)
class Action:
    """One thing that the engine does.

    `step`: one micro-batch; `updates` if the optimizer steps at its end, `starts` if an inner loop starts with it.
    `roll_back`: the state that was kept when the inner loop started is put back.
    """

    problem: str
    kind: Literal["step", "roll_back"] = "step"
    updates: bool = True
    starts: bool = False


GlobalStep = tuple[Action, ...]
Repeated = tuple[tuple[GlobalStep, ...], int]  # a block of global steps, and how often it comes in a row


@dataclass(frozen=True)
class Plan:
    """The blocks of `prefix`, then `cycle` for ever. One inner tuple per global step."""

    prefix: tuple[Repeated, ...]
    cycle: tuple[GlobalStep, ...]

    def at(self, step: int) -> GlobalStep:
        """What global step `step` (from 0) does."""
        for block, times in self.prefix:
            if step < len(block) * times:
                return block[step % len(block)]
            step -= len(block) * times
        return self.cycle[step % len(self.cycle)]

    def walk(self, start: int, stop: int) -> Iterator[GlobalStep]:
        """The global steps start, ..., stop - 1."""
        return (self.at(step) for step in range(start, stop))

    def last_before(self, name: str, step: int, stop: int) -> bool:
        """Whether global step `step` is the last one before `stop` in which `name` steps."""
        return name in self._names(step) and not any(name in self._names(later) for later in range(step + 1, stop))

    def updates(self, steps: int) -> Counter[str]:
        """How many optimizer steps each problem takes in so many global steps."""
        counts: Counter[str] = Counter()
        for block, times in (*self.prefix, (self.cycle, steps)):
            whole, rest = divmod(steps, len(block))
            whole, rest = (whole, rest) if whole < times else (times, 0)
            for part, often in ((block, whole), (block[:rest], 1)):
                for step in part:
                    for action in step:
                        counts[action.problem] += often * (action.kind == "step" and action.updates)
            steps -= whole * len(block) + rest
        return counts

    def _names(self, step: int) -> frozenset[str]:
        return frozenset(action.problem for action in self.at(step) if action.kind == "step")

    @classmethod
    def simulate(cls, graph: ProblemGraph, schedules: Mapping[str, UpdateSchedule]) -> Plan:
        """Run the rules until their state repeats.

        Raises GraphError if that takes a hundred thousand steps, without those of a warm-up that repeat themselves; and
        where a problem without an upper one is to roll back.
        """
        _require_uppers(graph, schedules)
        simulation = _Simulation(graph, schedules)
        seen: dict[tuple[object, ...], tuple[int, dict[str, int]]] = {}  # how many steps were done, and warm-up steps
        prefix: list[Repeated] = []
        steps: list[GlobalStep] = []  # since the last block of the prefix
        simulated = 0
        while True:
            state, warm = simulation.state(), dict(simulation.warm)
            if state in seen:
                start, before = seen[state]
                if warm == before:
                    break
                if times := simulation.skipped_blocks(before, len(steps) - start):
                    prefix += [((step,), 1) for step in steps[:start]]
                    prefix.append((tuple(steps[start:]), times + 1))
                    seen, steps = {}, []
                    continue
            if simulated > _LONGEST_CYCLE:
                raise GraphError(
                    f"the unroll counts of these problems do not line up within {_LONGEST_CYCLE} steps",
                    where="problems.*.unroll_steps",
                    seen=", ".join(f"{name}: {schedules[name].unroll_steps}" for name in graph.names),
                    fix="choose counts with a small common multiple",
                )
            seen[state] = len(steps), warm
            steps.append(simulation.global_step())
            simulated += 1
        once: list[Repeated] = [(tuple(steps[:start]), 1)] if start else []
        return cls((*prefix, *once), tuple(steps[start:]))


def _require_uppers(graph: ProblemGraph, schedules: Mapping[str, UpdateSchedule]) -> None:
    """An inner loop ends where an upper problem steps."""
    for name in graph.names:
        if schedules[name].roll_back and not graph.uppers[name]:
            lowers = graph.lowers[name]
            raise GraphError(
                f"no problem steps after {name}: its inner loop never ends, and there is nothing to roll back to",
                where=f"problems.{name}.roll_back",
                seen="roll_back: true",
                fix=f"{lowers[0]}.roll_back=true rolls {lowers[0]} back, once {name} has stepped"
                if lowers
                else "drop it, or let another problem depend on this one: dependencies.u2l",
            )


_Work: TypeAlias = "Iterator[_Work]"  # a piece of a step; what it yields is done before it goes on


class _Simulation:
    """The counters of every problem, reduced to what the future depends on."""

    def __init__(self, graph: ProblemGraph, schedules: Mapping[str, UpdateSchedule]) -> None:
        self.graph = graph
        self.schedules = schedules
        self.micro = dict.fromkeys(graph.names, 0)  # micro-batches since the last optimizer step
        self.warm = dict.fromkeys(graph.names, 0)  # optimizer steps, capped at warmup_steps
        self.unrolled = dict.fromkeys(graph.names, 0)  # optimizer steps past warm-up, modulo unroll_steps
        self.fresh = dict.fromkeys(graph.names, True)  # the next step past warm-up starts an inner loop
        self.inner: dict[str, list[Action]] = {name: [] for name in graph.names}  # kept for roll_back only
        self.due: set[tuple[str, str]] = set()  # (lower, upper)
        self.actions: list[Action] = []

    def state(self) -> tuple[object, ...]:
        """What decides the next step; of a warm-up only whether it goes on."""
        counters = tuple(
            (self.micro[n], self._is_warming(n), self.unrolled[n], self.fresh[n], len(self.inner[n]))
            for n in self.graph.names
        )
        return counters, frozenset(self.due)

    def _is_warming(self, name: str) -> bool:
        return self.warm[name] < self.schedules[name].warmup_steps

    def skipped_blocks(self, before: Mapping[str, int], length: int) -> int:
        """How often the block of `length` steps since `before` comes again before some warm-up ends, done at once; 0
        where that is not worth while.

        before   warm-up steps of each problem when the block began
        """
        gains = {name: self.warm[name] - count for name, count in before.items() if self._is_warming(name)}
        times = min(
            ((self.schedules[name].warmup_steps - self.warm[name] - 1) // gain for name, gain in gains.items() if gain),
            default=0,
        )
        if times * length < _WORTH_SKIPPING:
            return 0
        for name, gain in gains.items():
            self.warm[name] += times * gain
        return times

    def global_step(self) -> GlobalStep:
        self.actions = []
        # a stack of what is under way: a chain may have more levels than Python has calls
        for leaf in self.graph.leaves:
            under_way = [self._step(leaf)]
            while under_way:
                inner = next(under_way[-1], None)
                if inner is None:
                    under_way.pop()
                else:
                    under_way.append(inner)
        return tuple(self.actions)

    def _step(self, name: str) -> Iterator[_Work]:
        schedule = self.schedules[name]
        self.micro[name] = (self.micro[name] + 1) % schedule.gradient_accumulation
        updates = self.micro[name] == 0
        warming = self._is_warming(name)
        starts = self.fresh[name] and not warming
        if not warming:
            self.fresh[name] = False
        action = Action(name, updates=updates, starts=starts)
        self.actions.append(action)
        if schedule.roll_back and not warming:
            self.inner[name].append(replace(action, starts=False))
        if not updates:
            return
        if warming:
            self.warm[name] += 1
            return
        self.unrolled[name] = (self.unrolled[name] + 1) % schedule.unroll_steps
        if self.unrolled[name] == 0:
            yield self._raise_uppers(name)

    def _raise_uppers(self, name: str) -> Iterator[_Work]:
        stepping = []
        self.due.update((name, upper) for upper in self.graph.uppers[name])
        for upper in self.graph.uppers[name]:
            needed = {(lower, upper) for lower in self.graph.lowers[upper]}
            if needed <= self.due:
                self.due -= needed
                stepping.append(upper)
        for upper in stepping:
            yield self._step(upper)
        below = [low for low in self.graph.names if any(low in self.graph.lowers[u] for u in stepping)]
        for lower in below:
            self.fresh[lower] = True
            if self.inner[lower]:  # empty where a problem further above that reads it, too, has sent it back already
                self.actions.append(Action(lower, kind="roll_back"))
                self.actions.extend(self.inner[lower])
                self.inner[lower] = []
