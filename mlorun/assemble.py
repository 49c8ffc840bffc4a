"""Checked config to objects: data once, then streams, problems, graph, engine. The only caller of instantiate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from mlorun.config.places import Allowed
from mlorun.config.schema import PROBLEM_KEYS
from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.core.evaluation import Evaluation
from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.data.batches import Split, on_device, require_samples
from mlorun.data.stream import stream
from mlorun.errors import ConfigError, DataError, MlorunError, did_you_mean
from mlorun.run.device import Precision, resolve_device
from mlorun.run.endings import place_in_recipe
from mlorun.run.events import Logger
from mlorun.run.generators import preserved
from mlorun.run.seeds import derive_seed, prepare_torch, seed_everything


def build(config: DictConfig, *, record_all: bool = False) -> Engine:
    """The engine of a composed and checked config, on its device. Raises ConfigError, DataError, DeviceError.

    record_all   record what any estimator could need, so that all can be compared. Global random number generators are
                 left as they were.
    """
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    dependencies = plain["dependencies"] or {}
    problems = plain["problems"]
    trusted = plain["trusted_packages"]
    graph = ProblemGraph.build(tuple(problems), dependencies.get("u2l"), dependencies.get("l2u"))
    device = resolve_device(plain["device"])
    precision = Precision(plain["precision"], device)
    prepare_torch(device, threads=plain["threads"], deterministic=plain["deterministic"])
    seed = plain["seed"]
    # on the device once, for every stream and evaluation that shares them
    # a program whose problems make their own batches has no data
    data = make(plain["data"], "data", Allowed.at("data", trusted)) if plain["data"] else {}
    if not isinstance(data, Mapping):
        raise DataError(
            "a data builder returns splits by name",
            where="data",
            seen=f"{plain['data']['_target_']} returned {type(data).__name__}",
            fix='return {"train": (inputs, labels), "test": ...}: a tensor, tuple, mapping or Dataset for each name',
        )
    wanted = {split for node in problems.values() for split in (node["split"], *node["evaluate_on"])}
    for split in sorted(wanted & set(data)):
        require_samples(split, data[split])
    splits = {name: on_device(split, device) for name, split in data.items()}
    with preserved(device):
        # uppers first: the order in which an author thinks of them
        built = {name: _problem(name, problems[name], splits, device, seed, trusted) for name in reversed(graph.order)}
    return Engine(
        [built[name] for name in graph.names],
        graph,
        device=device,
        precision=precision,
        seed=derive_seed(seed, "run"),
        evaluations=_evaluations(problems, splits),
        record_all=record_all,
        skips=plain["nonfinite"]["skips"] if plain["nonfinite"]["policy"] == "skip" else None,
        **plain["engine"],
    )


def _problem(
    name: str, node: dict[str, Any], splits: Mapping[str, Split], device: torch.device, seed: int, trusted: list[str]
) -> Problem:
    # each problem's initialization is its own: adding one problem leaves the others as they were
    seed_everything(derive_seed(seed, "module", name))
    where = f"problems.{name}"
    module = make(node["module"], f"{where}.module", Allowed.at("module", trusted)).to(device)
    batches = None
    if node["split"] is not None:
        batches = stream(
            _split(name, node["split"], splits),
            batch_size=node["batch_size"],
            seed=seed,
            name=name,
            device=device,
            workers=node["workers"],
        )
    extra = {
        key: make(value, f"{where}.{key}", Allowed.at("argument", trusted))
        for key, value in node.items()
        if key not in PROBLEM_KEYS
    }
    built = Allowed.at("problem", trusted).locate(node["_target_"], where)(
        name=name,
        module=module,
        optimizer=_placed(node["optimizer"], f"{where}.optimizer", Allowed.at("optimizer", trusted)),
        scheduler=_placed(node["scheduler"], f"{where}.scheduler", Allowed.at("scheduler", trusted)),
        stream=batches,
        update_schedule=UpdateSchedule(**{key.name: node[key.name] for key in fields(UpdateSchedule)}),
        gradient_clip=node["gradient_clip"],
        hypergradient=make(node["hypergradient"], f"{where}.hypergradient", Allowed.at("hypergradient", trusted)),
        **extra,
    )
    assert isinstance(built, Problem)
    if "theta" not in vars(built):
        raise ConfigError(
            f"{type(built).__name__}.__init__ does not call that of Problem",
            where=f"{where}._target_",
            fix="take **kwargs in it, and begin with super().__init__(**kwargs)",
        )
    return built


def _evaluations(problems: Mapping[str, Any], splits: Mapping[str, Split]) -> list[Evaluation]:
    wanted = [(name, split) for name, node in problems.items() for split in node["evaluate_on"]]
    named = [split for _, split in wanted]
    return [
        Evaluation(
            problem=name,
            prefix=split if named.count(split) == 1 else f"{name}/{split}",
            split=_split(name, split, splits, key="evaluate_on"),
            batch_size=problems[name]["evaluation_batch_size"],
        )
        for name, split in wanted
    ]


def _split(problem: str, split: str, splits: Mapping[str, Split], key: str = "split") -> Split:
    if split not in splits:
        raise ConfigError(
            f"{problem} wants the split {split!r}, which the data do not have",
            where=f"problems.{problem}.{key}",
            fix=did_you_mean(split, splits),
        )
    return splits[split]


@contextmanager
def _at(where: str, node: Any = None) -> Iterator[None]:
    """Turn a constructor's error into a ConfigError at `where` in the config; at the argument that it names, if the
    config node there has it."""
    try:
        yield
    except (MlorunError, InstantiationException, TypeError, ValueError, RuntimeError, AttributeError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        if isinstance(cause, MlorunError):
            if not cause.where:
                cause.where = where
            elif "." not in cause.where:
                cause.where = f"{where}.{_path(node, cause.where) or cause.where}"
            raise cause  # noqa: B904 - the error around it adds nothing
        place = place_in_recipe(cause)
        seen = type(cause).__name__ + (f" at {place}" if place else "")
        raise ConfigError(_first_line(cause), where=where, seen=seen) from error


def _path(node: Any, key: str) -> str | None:
    """The dotted path of the first `key` in a node, or None."""
    if not isinstance(node, dict):
        return None
    if key in node:
        return key
    below = ((name, _path(value, key)) for name, value in node.items())
    return next((f"{name}.{path}" for name, path in below if path), None)


def _first_line(error: BaseException) -> str:
    first = next(iter(str(error).splitlines()), "")
    # a KeyError's text is the key alone
    return f"{type(error).__name__}: {first}" if isinstance(error, KeyError) or not first else first


def make_loggers(config: DictConfig) -> list[Logger]:
    """The loggers of a checked config. Raises ConfigError."""
    return _made(config, "logger", Logger)


def make_callbacks(config: DictConfig) -> list[Callback]:
    """The callbacks of a checked config. Raises ConfigError."""
    return _made(config, "callback", Callback)


def _made(config: DictConfig, group: str, kind: type) -> list[Any]:
    nodes: Any = OmegaConf.to_container(config[group], resolve=True)
    made = {
        name: make(node, f"{group}.{name}", Allowed.at(group, config.trusted_packages)) for name, node in nodes.items()
    }
    for name, one in made.items():
        if not isinstance(one, kind):
            methods = ", ".join(key for key, value in vars(kind).items() if callable(value) and key[0] != "_")
            raise ConfigError(
                f"{group}.{name} is no {group}",
                where=f"{group}.{name}",
                seen=type(one).__name__,
                fix="derive it from mlorun.Callback" if kind is Callback else f"it needs methods {methods}",
            )
    return list(made.values())


def make(node: Any, where: str, allowed: Allowed) -> Any:
    """What a config node describes; None for an empty one, and a plain value for a plain value. Raises ConfigError, too
    for a `_target_` in it, at any depth, that may not stand there."""
    if node is None or node == {}:
        return None
    if isinstance(node, dict | list):
        _check_targets(node, where, allowed)
        with _at(where, node):
            return instantiate(node, _convert_="all")
    return node


def _check_targets(node: Any, where: str, allowed: Allowed) -> None:
    if isinstance(node, dict):
        if "_target_" in node:
            allowed.locate(node["_target_"], where)
            allowed = allowed.inside
        for key, value in node.items():
            _check_targets(value, f"{where}.{key}", allowed)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            _check_targets(value, f"{where}[{index}]", allowed)


def _placed(node: Any, where: str, allowed: Allowed) -> Callable[[Any], Any] | None:
    """What a `_partial_` node describes; an error in its later call is a ConfigError at `where`."""
    maker = make(node, where, allowed)
    if maker is None:
        return None

    def placed(argument: Any) -> Any:
        with _at(where):
            return maker(argument)

    return placed
