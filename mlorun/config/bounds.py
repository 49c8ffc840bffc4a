"""Numbers against the bounds that the schema states. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from mlorun.config.schema import ProblemConfig
from mlorun.errors import ConfigError, did_you_mean, together


def out_of_bounds(node: Mapping[str, Any], schema: type, where: str) -> Iterator[ConfigError]:
    """Faults of numbers that are outside the bounds of the schema. None has no bounds, NaN is outside all."""
    for key in fields(schema):
        value = node[key.name]
        path = f"{where}.{key.name}".lstrip(".")
        at_least, above, below = (key.metadata.get(bound) for bound in ("at_least", "above", "below"))
        one_of = key.metadata.get("one_of")
        if one_of is not None and value not in one_of:
            yield ConfigError(f"{path} is {value!r}", where=path, fix=did_you_mean(str(value), one_of))
        if at_least is not None and value is not None and not value >= at_least:
            yield ConfigError(f"{path} must be at least {at_least}", where=path, seen=f"{path}={value}")
        if above is not None and value is not None and not value > above:
            message = f"{path} must be greater than {above:g}" + ("" if below else ", or null for no bound")
            yield ConfigError(message, where=path, seen=f"{path}={value}")
        if below is not None and value is not None and not value < below:
            yield ConfigError(f"{path} must be less than {below:g}", where=path, seen=f"{path}={value}")


def require_bounds(node: DictConfig, schema: type, where: str) -> None:
    """Raise ConfigErrors with every number of this node that is out of bounds."""
    _require_none(list(out_of_bounds(_plain(node), schema, where)))


def require_bounds_of_problems(config: DictConfig) -> None:
    """Raise ConfigErrors with every number of a problem that is out of bounds, and look at nothing else."""
    problems = _plain(config.problems)
    _require_none(
        [fault for name, node in problems.items() for fault in out_of_bounds(node, ProblemConfig, f"problems.{name}")]
    )


def _plain(node: DictConfig) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(node, resolve=True)
    assert isinstance(plain, dict)
    return plain


def _require_none(faults: list[ConfigError]) -> None:
    if faults:
        raise together(faults)
