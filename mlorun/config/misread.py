"""Words of a command that Hydra would misread or pass over: each with the line to type instead. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from mlorun.config.locations import options
from mlorun.config.schema import TOP_KEYS
from mlorun.config.shorthand import PRIMARY, expand, with_choices
from mlorun.config.unknown import meant
from mlorun.errors import ConfigError

_RANGE = re.compile(r"(?P<key>[^=]+)=(?P<first>-?\d+)\.\.\.?(?P<last>-?\d+)")
_NO_ENTRY = re.compile(r"(?P<key>[^=~+]+)=\s*\{\s*\}")
_CONFIG_NAME = ("-cn", "--config-name")
_MOST = 10  # values that a range is written out to


def misread(arguments: Sequence[str]) -> list[ConfigError]:
    """One fault for each such word of a command's arguments. Hydra must be initialized."""
    faults = []
    for index, text in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else None
        fault = (
            _experiment_added(text)
            or _config_name(text, following)
            or _override_with_dashes(text, following, arguments)
            or _range(text)
            or _no_entry(text, arguments)
        )
        if fault is not None:
            faults.append(fault)
    return faults


def _experiment_added(text: str) -> ConfigError | None:
    if not text.startswith("+experiment="):
        return None
    return ConfigError("an experiment is chosen without a +", where=text, fix=text.lstrip("+"))


def _config_name(text: str, following: str | None) -> ConfigError | None:
    flag, _, name = text.partition("=")
    if flag not in _CONFIG_NAME:
        return None
    name = (name or following or "").removesuffix(".yaml").removeprefix("experiment/")
    if name == PRIMARY:
        return None
    known = name in options("experiment")
    return ConfigError(
        "every run starts from one config of mlorun, and an experiment is chosen on top of it",
        where=f"{text} {following}" if "=" not in text and following else text,
        fix=f"mlorun experiment={name}" if known else "mlorun experiment=NAME; mlorun ls lists them",
    )


def _override_with_dashes(text: str, following: str | None, arguments: Sequence[str]) -> ConfigError | None:
    """`--lr 0.1`, where lr is a key of the config or of a part of it."""
    flag, equals, value = text.partition("=")
    if not flag.startswith("--") or flag in _hydra_flags():
        return None
    key = flag.removeprefix("--").replace("-", "_")
    if not equals:
        value = following if following and not following.startswith("-") and "=" not in following else "..."
    lines = [f"{key}={value}"] if key.partition(".")[0] in TOP_KEYS or key == "experiment" else []
    if not lines:
        lines = meant(key, value, _choices(arguments))
    if not lines:
        return None
    return ConfigError(
        "an override has no dashes",
        where=text if equals or value == "..." else f"{text} {value}",
        fix=" or ".join(lines),
    )


def _hydra_flags() -> set[str]:
    return {flag for action in get_args_parser()._actions for flag in action.option_strings}


def _range(text: str) -> ConfigError | None:
    match = _RANGE.fullmatch(text)
    if match is None or match["key"] == "name":
        return None
    first, last = int(match["first"]), int(match["last"])
    listed = f"{match['key']}={','.join(map(str, range(first, last + 1)))}" if 0 <= last - first < _MOST else None
    written = f"'{match['key']}=range({first},{last + 1})'"
    return ConfigError(
        "a range is not written with dots",
        where=text,
        fix=f"mlorun -m ... {listed} or {written}, which ends before {last + 1}"
        if listed
        else f"mlorun -m ... {written}, which ends before {last + 1}",
    )


def _no_entry(text: str, arguments: Sequence[str]) -> ConfigError | None:
    """`dependencies={}`, which is merged into what is there."""
    match = _NO_ENTRY.fullmatch(text)
    if match is None:
        return None
    (path,) = (written.partition("=")[0] for written in expand([*arguments, text])[-1:])
    node: Any = _choices(arguments)
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if not node or not isinstance(node, Mapping):
        return None
    if "none" in options(path.rpartition(".")[2]):
        fix = f"{match['key']}=none"
    elif "_target_" in node:
        fix = f"~{match['key']}"
    else:
        removed = _entries(match["key"], node)
        if not removed:
            return None
        fix = " ".join(f"'~{entry}'" for entry in removed)
    return ConfigError(
        "an empty mapping removes nothing: it is merged into what is there",
        where=text,
        seen=f"{match['key']} has {', '.join(map(str, node))}",
        fix=fix,
    )


def _entries(path: str, node: Mapping[str, Any] | None) -> list[str]:
    """What a `~` has to name: each key; in the maps of dependencies those inside."""
    if node is None:
        return []
    if path == "dependencies":
        return [entry for key, below in node.items() for entry in _entries(f"{path}.{key}", below)]
    return [f"{path}.{key}" for key in node]


def _choices(arguments: Sequence[str]) -> Any:
    """The plain config of the options that are chosen; {} where it cannot be composed."""
    config = with_choices([text for text in arguments if "=" in text and not text.startswith("-")])
    return {} if config is None else OmegaConf.to_container(config)
