"""Every fault of a config at once, before anything is built: targets, arguments, types, ranges."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from keyword import iskeyword
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlorun.config import methods, optimizer_defaults
from mlorun.config.annotations import Arguments, arguments, fits, shown
from mlorun.config.bounds import out_of_bounds
from mlorun.config.locations import options
from mlorun.config.places import PLACES, Allowed
from mlorun.config.recipes import make_recipes_importable
from mlorun.config.resolve import missing, resolve
from mlorun.config.schema import (
    PLACED_GROUPS,
    PROBLEM_ARGUMENTS,
    PROBLEM_KEYS,
    REQUIRED_GROUPS,
    CheckpointConfig,
    Config,
    EngineConfig,
    NonfiniteConfig,
    ProblemConfig,
    SweepConfig,
)
from mlorun.config.wrong_choices import no_experiment
from mlorun.errors import ConfigError, did_you_mean, nearest, said_once, together

# keys of a node with a _target_ that are not arguments
DIRECTIVES = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
# parts of a problem that `build` calls with one more argument: the parameters, the optimizer
CALLED = ("optimizer", "scheduler")


def check(config: DictConfig) -> None:
    """Raise ConfigErrors with every fault; a ConfigError where there is only one."""
    make_recipes_importable()
    faults = said_once(_faults(config))
    if faults:
        raise together(faults)


def _faults(config: DictConfig) -> Iterator[ConfigError]:
    if not config.problems:
        yield no_experiment()
        return
    # the checks below read every value
    resolve(config)
    if absent := missing(config):
        yield from absent
        return
    plain: Any = OmegaConf.to_container(config, resolve=True)
    trusted = plain["trusted_packages"]
    yield from out_of_bounds(plain["engine"], EngineConfig, "engine")
    yield from out_of_bounds(plain, Config, "")
    yield from out_of_bounds(plain["checkpoint"], CheckpointConfig, "checkpoint")
    yield from out_of_bounds(plain["sweep"], SweepConfig, "sweep")
    yield from out_of_bounds(plain["nonfinite"], NonfiniteConfig, "nonfinite")
    if any(node["split"] or node["evaluate_on"] for node in plain["problems"].values()):
        yield from _part(plain["data"], "data", "data=OPTION", Allowed.at("data", trusted))
    for group in ("logger", "callback"):
        if "_target_" in plain[group]:
            yield ConfigError(
                f"a {group} stands under a name of its own",
                where=group,
                seen=f"_target_: {plain[group]['_target_']}",
                fix=f"in its file, one level lower: NAME: {{_target_: {plain[group]['_target_']}}}",
            )
            continue
        for name, entry in plain[group].items():
            yield from _part(entry, f"{group}.{name}", f"{group}=OPTION", Allowed.at(group, trusted))
    for name, node in plain["problems"].items():
        yield from _problem(name, node, trusted)


def _problem(name: str, node: Mapping[str, Any], trusted: Sequence[str]) -> Iterator[ConfigError]:
    where = f"problems.{name}"
    if not name.isidentifier() or iskeyword(name):
        yield ConfigError("a problem's name must be a Python name: losses call it as self.NAME", where=where, seen=name)
    yield from out_of_bounds(node, ProblemConfig, where)
    yield from optimizer_defaults.faults(node["optimizer_defaults"], f"{where}.optimizer_defaults")
    for key in PLACED_GROUPS:
        if node[key] or key in REQUIRED_GROUPS:
            allowed = Allowed.at(key, trusted)
            yield from _part(node[key], f"{where}.{key}", f"{name}.{key}=OPTION", allowed, positional=key in CALLED)
    further = {key: value for key, value in node.items() if key not in PROBLEM_KEYS}
    for key, value in further.items():
        yield from _below(value, f"{where}.{key}", Allowed.at("argument", trusted))
    try:
        kind = Allowed.at("problem", trusted).locate(node["_target_"], where)
    except ConfigError as fault:
        yield fault
        return
    if inspect.isclass(kind):
        yield from methods.faults(kind, f"{where}._target_")
        if name in methods.of_base(kind, "Problem") or name in PROBLEM_ARGUMENTS:
            yield ConfigError(
                f"no problem can be called {name}: self.{name} is something else in a loss",
                where=where,
                fix="rename it",
            )
    accepted = arguments(kind)
    if accepted is not None:
        yield from _bound(node["_target_"], accepted, further, where, passed=PROBLEM_ARGUMENTS, others=PROBLEM_KEYS)


def _part(node: Any, where: str, choice: str, allowed: Allowed, *, positional: bool = False) -> Iterator[ConfigError]:
    """Faults of something that must be a node with a `_target_`."""
    if isinstance(node, dict) and "_target_" in node:
        yield from _below(node, where, allowed, positional=positional)
        return
    group = choice.partition("=")[0].rpartition(".")[2]
    known = f"choose one: {choice}, of {', '.join(options(group))}"
    if isinstance(node, dict):
        seen = f"keys {', '.join(map(str, node))}" if node else None
        yield ConfigError(f"{where} has no _target_", where=where, seen=seen, fix=known)
    else:
        seen = None if node is None else f"{node!r}"
        yield ConfigError(f"{where} is a mapping with a _target_", where=where, seen=seen, fix=known)


def _below(node: Any, where: str, allowed: Allowed, *, positional: bool = False) -> Iterator[ConfigError]:
    """Faults of every `_target_` at or below a node."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from _below(value, f"{where}[{index}]", allowed)
    elif isinstance(node, dict):
        if "_target_" in node:
            yield from _call(node, where, allowed, positional=positional)
            allowed = allowed.inside
        for key, value in node.items():
            yield from _below(value, f"{where}.{key}", allowed)


def _call(node: Mapping[str, Any], where: str, allowed: Allowed, *, positional: bool) -> Iterator[ConfigError]:
    try:
        target = allowed.locate(node["_target_"], where)
    except ConfigError as fault:
        yield fault
        return
    if inspect.isclass(target) and allowed.place == PLACES["callback"]:
        yield from methods.faults(target, f"{where}._target_")
    accepted = arguments(target)
    if accepted is None:
        return
    given = {key: value for key, value in node.items() if key not in DIRECTIVES}
    if not isinstance(node.get("_args_") or [], list):
        seen = f"_args_: {node['_args_']!r}"
        yield ConfigError("_args_ is a list of arguments", where=f"{where}._args_", seen=seen, fix="name the arguments")
        return
    partial = bool(node.get("_partial_"))
    passed: tuple[str, ...] = tuple(accepted.parameters)[: len(node.get("_args_") or ())]
    if positional and partial:
        # the parameters for an optimizer, the optimizer for a scheduler
        passed = tuple(accepted.parameters)[:1]
    elif partial:
        # the caller gives the rest
        passed = tuple(name for name in accepted.required if name not in given)
    elif positional and (first := next(iter(accepted.required), None)) and first not in given:
        message = f"{node['_target_']} needs {first!r}, which mlorun passes later"
        fix = f"_partial_: true beside the _target_ in its file, or ++{where}._partial_=true"
        yield ConfigError(message, where=where, fix=fix)
        return
    yield from _bound(node["_target_"], accepted, given, where, passed=passed)


def _bound(
    target: str,
    accepted: Arguments,
    given: Mapping[str, Any],
    where: str,
    *,
    passed: Collection[str],
    others: Collection[str] = (),
) -> Iterator[ConfigError]:
    """Faults of a call with what is given; `passed` comes from elsewhere, `others` are right names too."""
    free = [name for name in accepted.parameters if name not in passed]
    for key, value in given.items():
        path = f"{where}.{key}"
        if key in free:
            annotation = accepted.types.get(key, Any)
            node = isinstance(value, dict) and "_target_" in value
            if not node and not fits(value, annotation):
                seen = f"{value!r}, which is of type {type(value).__name__}"
                yield ConfigError(
                    f"{path} has the wrong type",
                    where=path,
                    seen=seen,
                    fix=f"{target} takes {shown(annotation)}",
                )
        elif key in passed or not accepted.open:
            known = [*free, *(name for name in others if not name.startswith("_"))]
            fix = did_you_mean(key, known) if known else f"drop it: {target} takes no arguments"
            group = where.rpartition(".")[2]
            if group in PLACED_GROUPS and nearest(key, known) is None:
                fix += (
                    f"; a new _target_ keeps the keys of the option before it: put it into configs/{group}/NAME.yaml, "
                    f"and choose {where.removeprefix('problems.').rpartition('.')[0]}.{group}=NAME"
                )
            yield ConfigError(f"{target} has no argument {key!r}", where=path, seen=f"{key}: {value!r}", fix=fix)
    for name in accepted.required:
        if name in free and name not in given:
            yield ConfigError(f"{target} needs an argument {name!r}", where=where, fix=f"+{where}.{name}=...")
    if not accepted.open and (refused := [name for name in passed if name not in accepted.parameters]):
        fix = "take **kwargs, and pass them on to super().__init__"
        message = f"{target} does not take arguments that every problem gets"
        yield ConfigError(message, where=where, seen=", ".join(refused), fix=fix)
