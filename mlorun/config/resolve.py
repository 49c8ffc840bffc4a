"""${...} references are resolved; those that fail, and missing values, are reported by their paths. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from mlorun.config.references import bounded
from mlorun.config.schema import Config, ProblemConfig
from mlorun.config.unknown import unknown_keys
from mlorun.errors import ConfigError, together


def resolve(config: DictConfig) -> None:
    """Replace every ${...} by its value, in place. Raises ConfigErrors with all keys of the schema that are removed and
    all that nobody reads, or with all references that have no value.
    """
    _require_mappings(config)
    _complete(config)
    with bounded():
        faults = [*_removed(config), *unknown_keys(config)] or list(_unresolvable(config, ""))
        if faults:
            raise together(faults)
        try:
            OmegaConf.resolve(config)
        except OmegaConfBaseException as error:
            raise ConfigError(
                "a reference in the config cannot be used here",
                where=getattr(error, "full_key", None) or None,
                seen=str(error).splitlines()[0],
                fix="correct the reference, or give the key a value of its own",
            ) from error


def _require_mappings(config: DictConfig) -> None:
    """Raise ConfigErrors where the problems, or one of them, are no mapping."""
    nodes: dict[str, Any] = {"problems": config._get_node("problems", validate_access=False)}
    if isinstance(nodes["problems"], DictConfig):
        problems = nodes["problems"]
        nodes |= {f"problems.{name}": problems._get_node(name) for name in map(str, problems)}
    faults = [
        ConfigError(f"{path} is no mapping", where=path, seen=repr(node)[:80], fix="NAME: {_target_: ..., module: ...}")
        for path, node in nodes.items()
        if isinstance(node, ListConfig)
    ]
    if faults:
        raise together(faults)


def _complete(config: DictConfig) -> None:
    """Give a problem that was added as one value, `+problems.NAME={...}`, the keys and defaults of every problem."""
    problems: Any = config.problems if "problems" in config else None
    if problems is None:
        return
    if not isinstance(problems, DictConfig):  # a reference that leads to a text, for one
        fix = "NAME: {_target_: ..., module: ...}"
        raise ConfigError("problems is no mapping", where="problems", seen=repr(problems)[:80], fix=fix)
    for name, node in problems.items():
        if isinstance(node, DictConfig) and OmegaConf.get_type(node) is not ProblemConfig:
            problems[name] = OmegaConf.merge(OmegaConf.structured(ProblemConfig), node)


def missing(config: DictConfig) -> list[ConfigError]:
    """One fault for every value that is still ???."""
    return [
        ConfigError(f"{path} has no value", where=path, seen="???", fix=f"give it one: {path}=...")
        for path in sorted(OmegaConf.missing_keys(config))
    ]


def _removed(config: DictConfig) -> Iterator[ConfigError]:
    """One fault for every key that mlorun reads and that a `~` removed."""
    nodes: list[tuple[str, DictConfig, type]] = [("", config, Config)]
    nodes += [(f"problems.{name}.", node, ProblemConfig) for name, node in (config.get("problems") or {}).items()]
    for prefix, node, schema in nodes:
        for key in fields(schema):
            if key.name not in node and not OmegaConf.is_missing(node, key.name):
                path = f"{prefix}{key.name}"
                yield ConfigError(f"{path} is removed, and mlorun reads it", where=path, fix="drop the override with ~")


def _unresolvable(node: DictConfig | ListConfig, prefix: str) -> Iterator[ConfigError]:
    # a container that is itself ??? or null has nothing below it
    if node._is_missing() or node._is_none():
        return
    keys: list[Any] = list(range(len(node))) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        path = f"{prefix}[{key}]" if isinstance(node, ListConfig) else f"{prefix}.{key}".lstrip(".")
        if OmegaConf.is_missing(node, key):
            continue
        if OmegaConf.is_interpolation(node, key):
            try:
                node[key]
            except OmegaConfBaseException as error:
                yield _fault(path, node, key, error)
        elif isinstance(node[key], DictConfig | ListConfig):
            yield from _unresolvable(node[key], path)


def _fault(path: str, node: DictConfig | ListConfig, key: Any, error: OmegaConfBaseException) -> ConfigError:
    written: Any = node._get_node(key)  # of a long node, to_container would take long
    if isinstance(error, InterpolationResolutionError):
        message = "a reference in the config leads nowhere"
        fix = "correct the reference, or give the key a value"
    else:
        message = "a reference in the config leads to a value of the wrong type"
        fix = "correct the reference, or give the key a value of its own"
    return ConfigError(message, where=path, seen=f"{written._value()}: {str(error).splitlines()[0]}", fix=fix)
