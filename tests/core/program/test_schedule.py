"""The plan against a separately written interpreter of the schedule's rules, and against sequences worked by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.schedule import Plan, UpdateSchedule
from mlorun.errors import GraphError

GRAPHS = {
    "two levels": ProblemGraph.build(["up", "low"], {"up": ["low"]}),
    "three levels": ProblemGraph.build(["c", "b", "a"], {"c": ["a"]}, {"a": ["b"], "b": ["c"]}),
    "diamond": ProblemGraph.build(
        ["top", "l", "r", "base"], {"top": ["base"]}, {"base": ["l", "r"], "l": ["top"], "r": ["top"]}
    ),
    "two leaves under one": ProblemGraph.build(["up", "x", "y"], {"up": ["x", "y"]}),
    "two leaves under two": ProblemGraph.build(["p", "q", "x", "y"], {"p": ["x"], "q": ["y"]}),
    "two uppers on one": ProblemGraph.build(["p", "q", "low"], {"p": ["low"], "q": ["low"]}),
}


class Interpreter:
    """The rules, written as recursion with counters and flags: who steps when. Gives "name", "name'" for a micro-batch
    that ends without an optimizer step, and "<name" for a return to the start of an inner loop."""

    def __init__(self, graph: ProblemGraph, schedules: Mapping[str, UpdateSchedule]) -> None:
        self.graph, self.schedules = graph, schedules
        self.batches = dict.fromkeys(graph.names, 0)
        self.updates = dict.fromkeys(graph.names, 0)
        self.ready = {(low, up): False for up in graph.names for low in graph.lowers[up]}
        self.inner: dict[str, list[str]] = {name: [] for name in graph.names}
        self.words: list[str] = []

    def global_step(self) -> list[str]:
        self.words = []
        for name in self.graph.names:
            if not self.graph.lowers[name]:
                self.step(name)
        return self.words

    def step(self, name: str) -> None:
        schedule = self.schedules[name]
        warm = self.updates[name] >= schedule.warmup_steps
        self.batches[name] += 1
        boundary = self.batches[name] % schedule.gradient_accumulation == 0
        word = name if boundary else name + "'"
        self.words.append(word)
        if warm:
            self.inner[name].append(word)
        if not boundary:
            return
        self.updates[name] += 1
        past = self.updates[name] - schedule.warmup_steps
        if past <= 0 or past % schedule.unroll_steps:
            return
        for up in self.graph.uppers[name]:
            self.ready[name, up] = True
        due = [up for up in self.graph.uppers[name] if all(self.ready[low, up] for low in self.graph.lowers[up])]
        for up in due:
            for low in self.graph.lowers[up]:
                self.ready[low, up] = False
        for up in due:
            self.step(up)
        for low in self.graph.names:
            if any(low in self.graph.lowers[up] for up in due):
                if self.schedules[low].roll_back and self.inner[low]:
                    self.words += [f"<{low}", *self.inner[low]]
                self.inner[low] = []


def spelled(plan: Plan, step: int) -> list[str]:
    words = []
    for action in plan.at(step):
        if action.kind == "roll_back":
            words.append(f"<{action.problem}")
        else:
            words.append(action.problem if action.updates else action.problem + "'")
    return words


def some_schedules(graph: ProblemGraph, seed: int) -> dict[str, UpdateSchedule]:
    draw = random.Random(seed)
    return {
        name: UpdateSchedule(
            unroll_steps=draw.choice([1, 1, 2, 3]),
            warmup_steps=draw.choice([0, 0, 1, 4]),
            gradient_accumulation=draw.choice([1, 1, 2]),
            roll_back=draw.random() < 0.3 and bool(graph.uppers[name]),
        )
        for name in graph.names
    }


@pytest.mark.parametrize("shape", GRAPHS)
@pytest.mark.parametrize("seed", range(8))
def test_the_plan_is_what_the_rules_say(shape: str, seed: int) -> None:
    graph = GRAPHS[shape]
    schedules = some_schedules(graph, seed)
    plan = Plan.simulate(graph, schedules)
    rules = Interpreter(graph, schedules)
    for step in range(150):
        assert spelled(plan, step) == rules.global_step(), f"global step {step} of {schedules}"


@st.composite
def programs(draw: st.DrawFn) -> tuple[ProblemGraph, dict[str, UpdateSchedule]]:
    """Any small directed acyclic graph, and any update schedules on it."""
    names = [f"p{index}" for index in range(draw(st.integers(1, 5)))]
    l2u = {
        low: [up for up in names[index + 1 :] if draw(st.booleans())]
        for index, low in enumerate(names)
        if names[index:]
    }
    graph = ProblemGraph.build(draw(st.permutations(names)), {}, l2u)
    schedules = {
        name: UpdateSchedule(
            unroll_steps=draw(st.integers(1, 3)),
            warmup_steps=draw(st.integers(0, 3)),
            gradient_accumulation=draw(st.integers(1, 2)),
            roll_back=bool(graph.uppers[name]) and draw(st.booleans()),
        )
        for name in names
    }
    return graph, schedules


@given(programs())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_plan_of_any_program_is_what_the_rules_say(program: tuple[ProblemGraph, dict[str, UpdateSchedule]]) -> None:
    graph, schedules = program
    plan, rules = Plan.simulate(graph, schedules), Interpreter(graph, schedules)
    for step in range(60):
        assert spelled(plan, step) == rules.global_step(), f"global step {step} of {schedules}"


def test_a_three_level_chain_steps_each_level_after_its_unroll() -> None:
    plan = Plan.simulate(
        GRAPHS["three levels"], {"a": UpdateSchedule(2), "b": UpdateSchedule(2), "c": UpdateSchedule()}
    )
    assert [spelled(plan, step) for step in range(5)] == [["a"], ["a", "b"], ["a"], ["a", "b", "c"], ["a"]]
    assert len(plan.cycle) == 4


def test_a_diamond_waits_for_both_of_its_arms() -> None:
    schedules = {"base": UpdateSchedule(), "l": UpdateSchedule(), "r": UpdateSchedule(2), "top": UpdateSchedule()}
    plan = Plan.simulate(GRAPHS["diamond"], schedules)
    assert spelled(plan, 0) == ["base", "l", "r"]
    assert spelled(plan, 1) == ["base", "l", "r", "top"]


def test_warm_up_delays_the_problems_above_and_is_not_repeated() -> None:
    schedules = {"low": UpdateSchedule(2, warmup_steps=3, roll_back=True), "up": UpdateSchedule()}
    plan = Plan.simulate(GRAPHS["two levels"], schedules)
    assert [spelled(plan, step) for step in range(3)] == [["low"]] * 3
    assert spelled(plan, 3) == ["low"]
    assert spelled(plan, 4) == ["low", "up", "<low", "low", "low"]


def test_roll_back_with_a_middle_unroll_above_one_repeats_the_middle_steps_alone() -> None:
    schedules = {"a": UpdateSchedule(1), "b": UpdateSchedule(2, roll_back=True), "c": UpdateSchedule()}
    plan = Plan.simulate(GRAPHS["three levels"], schedules)
    assert [spelled(plan, step) for step in range(2)] == [["a", "b"], ["a", "b", "c", "<b", "b", "b"]]


def test_a_problem_that_two_levels_above_read_returns_once() -> None:
    """Twice, the second time with nothing to repeat, would leave it for ever where it started."""
    graph = ProblemGraph.build(["top", "mid", "low"], {}, {"low": ["mid", "top"], "mid": ["top"]})
    schedules = {"low": UpdateSchedule(roll_back=True), "mid": UpdateSchedule(), "top": UpdateSchedule()}
    plan = Plan.simulate(graph, schedules)
    assert [spelled(plan, step) for step in range(2)] == [["low", "mid", "top", "<low", "low"]] * 2


def test_a_repeated_inner_loop_is_not_a_new_one() -> None:
    plan = Plan.simulate(GRAPHS["two levels"], {"low": UpdateSchedule(2, roll_back=True), "up": UpdateSchedule()})
    assert [action.starts for action in plan.at(0)] == [True]
    assert spelled(plan, 1) == ["low", "up", "<low", "low", "low"]
    assert [action.starts for action in plan.at(1) if action.problem == "low"] == [False] * 4


def test_accumulation_counts_optimizer_steps_not_micro_batches() -> None:
    schedules = {"low": UpdateSchedule(2, gradient_accumulation=2), "up": UpdateSchedule(gradient_accumulation=2)}
    plan = Plan.simulate(GRAPHS["two levels"], schedules)
    got = [spelled(plan, step) for step in range(8)]
    assert got == [["low'"], ["low"], ["low'"], ["low", "up'"], ["low'"], ["low"], ["low'"], ["low", "up"]]


def test_an_inner_loop_starts_after_warm_up_and_after_each_step_above() -> None:
    plan = Plan.simulate(GRAPHS["two levels"], {"low": UpdateSchedule(2, warmup_steps=1), "up": UpdateSchedule()})
    starts = [plan.at(step)[0].starts for step in range(6)]
    assert starts == [False, True, False, True, False, True]


def test_the_place_in_the_plan_is_one_integer() -> None:
    schedules = some_schedules(GRAPHS["diamond"], 3)
    plan = Plan.simulate(GRAPHS["diamond"], schedules)
    assert list(plan.walk(17, 40)) == [plan.at(step) for step in range(17, 40)]


def test_unroll_counts_that_never_line_up_are_refused_and_named() -> None:
    schedules = {"x": UpdateSchedule(1009), "y": UpdateSchedule(1013), "up": UpdateSchedule()}
    with pytest.raises(GraphError, match="line up") as caught:
        Plan.simulate(GRAPHS["two leaves under one"], schedules)
    assert "1009" in (caught.value.seen or "")


def test_roll_back_without_an_upper_problem_is_refused_and_named() -> None:
    schedules = {"x": UpdateSchedule(), "y": UpdateSchedule(), "up": UpdateSchedule(roll_back=True)}
    with pytest.raises(GraphError, match="nothing to roll back") as caught:
        Plan.simulate(GRAPHS["two leaves under one"], schedules)
    assert caught.value.where == "problems.up.roll_back"
    assert "x.roll_back=true" in (caught.value.fix or "")


def test_a_chain_may_have_more_levels_than_python_has_calls() -> None:
    names = [f"p{level}" for level in range(1500)]
    graph = ProblemGraph.build(names, l2u=dict(zip(names, ([name] for name in names[1:]), strict=False)))
    plan = Plan.simulate(graph, dict.fromkeys(names, UpdateSchedule()))
    assert [action.problem for action in plan.at(0)] == names


@pytest.mark.parametrize("warmup", [0, 1, 999, 1000, 1500, 3001, 2_000_000])
@pytest.mark.parametrize("lower", [UpdateSchedule(unroll_steps=3), UpdateSchedule(unroll_steps=2, warmup_steps=1700)])
def test_a_warm_up_of_any_length_is_planned_as_the_rules_say(warmup: int, lower: UpdateSchedule) -> None:
    graph = ProblemGraph.build(["top", "up", "low"], {"top": ["up"], "up": ["low"]})
    schedules = {"top": UpdateSchedule(), "up": UpdateSchedule(2, warmup_steps=warmup), "low": lower}
    plan = Plan.simulate(graph, schedules)
    # low steps always; up with every lower.unroll_steps-th after low's warm-up; top with every second of up's after its
    for step in (0, 1, 5, 1699, 1700, 1703, 2998, 6003, 6005, 6010, 4_000_000, 4_000_004, 6_000_001, 6_000_005):
        past = step + 1 - lower.warmup_steps
        ups, due = divmod(past, lower.unroll_steps) if past > 0 else (0, 1)
        up_steps = due == 0 and past > 0
        top_steps = up_steps and ups > warmup and (ups - warmup) % 2 == 0
        names = [action.problem for action in plan.at(step)]
        assert names == ["low", *(["up"] if up_steps else []), *(["top"] if top_steps else [])], step
