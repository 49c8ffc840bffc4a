"""mlorun graph OVERRIDES...: levels, paths, and the order of steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from mlorun.config.bounds import require_bounds_of_problems
from mlorun.config.compose import composed
from mlorun.config.wrong_choices import no_experiment
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.schedule import Action, Plan, UpdateSchedule

MOST_ACTIONS = 40  # of a cycle, that are printed


def main(args: list[str]) -> int:
    """Print levels, hypergradients and the order of steps."""
    config = composed(args)
    if not config.problems:
        raise no_experiment()
    require_bounds_of_problems(config)
    plain: Any = OmegaConf.to_container(config)
    problems = plain["problems"]
    graph = ProblemGraph.build(tuple(problems), plain["dependencies"]["u2l"], plain["dependencies"]["l2u"])
    plan = Plan.simulate(graph, {name: schedule_of(node) for name, node in problems.items()})
    screen = Console(highlight=False)
    for line in lines(graph, plan, problems):
        screen.print(line, soft_wrap=True)
    iterations = plain["engine"]["train_iters"]
    if isinstance(iterations, int):
        counts = plan.updates(iterations)
        listed = ", ".join(f"{name} {counts.get(name, 0):,}" for name in reversed(graph.order))
        screen.print(f"  engine.train_iters={iterations:,} global steps: updates of {listed}", soft_wrap=True)
    return 0


def schedule_of(node: Mapping[str, Any]) -> UpdateSchedule:
    """The update schedule that a problem's config asks for."""
    return UpdateSchedule(**{key: node[key] for key in UpdateSchedule.__dataclass_fields__})


def lines(graph: ProblemGraph, plan: Plan, problems: Mapping[str, Any]) -> Iterator[str]:
    """What is printed, line by line."""
    yield "[bold]levels[/] (no other level differentiates through the top one)"
    for height, names in reversed(list(enumerate(graph.levels(), start=1))):
        yield f"  {height}  {', '.join(names)}"
    steering = [name for name in graph.names if graph.nodes_on_paths(name)]
    yield "[bold]hypergradients[/]" if steering else "[bold]hypergradients[/]: none"
    for upper in steering:
        for path in graph.paths(upper):
            steps = " -> ".join(path)
            yield f"  {upper} through {', '.join(graph.nodes_on_paths(upper))}: {steps} -> {upper}"
    yield "[bold]order of steps[/]"
    once = [action for block, times in plan.prefix if times == 1 for step in block for action in step]
    cycle = _spelled([action for step in plan.cycle for action in step])
    count = len(plan.cycle)
    for block, times in plan.prefix:
        if times > 1:
            yield f"  {times:,} times {_spelled([action for step in block for action in step])}"
    # prefix and cycle may differ only in details that are not printed
    if once and _spelled(once) != cycle:
        yield f"  once   {_spelled(once)}"
    yield f"  repeat {cycle}  ({count} global step{'s' if count > 1 else ''})"


def _spelled(actions: Sequence[Action]) -> str:
    names = [_name(action) for action in actions]
    runs = [(name, len(list(same))) for name, same in groupby(names)]
    text = [name if count == 1 else f"{name} x{count}" for name, count in runs[:MOST_ACTIONS]]
    return ", ".join(text) + (f", ... ({len(actions)} in all)" if len(runs) > MOST_ACTIONS else "")


def _name(action: Action) -> str:
    if action.kind == "roll_back":
        return f"(roll back {action.problem})"
    return action.problem if action.updates else f"{action.problem} (micro-batch)"
