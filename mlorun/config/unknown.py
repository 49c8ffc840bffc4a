"""Keys that nobody reads, at the root of a config and in the nodes that take no further ones. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlorun.config.schema import CLOSED
from mlorun.errors import ConfigError, did_you_mean

# what a person means by a root that is no key
_MEANT = {
    "resume": "mlorun resume RUN goes on with a run; init_from=RUN starts from its weights",
    "experiment": "experiment=NAME without the +; a file of configs/experiment begins with: # @package _global_",
}


def unknown_keys(config: DictConfig) -> Iterator[ConfigError]:
    """One fault for every key that the schema does not have, in the nodes that are closed."""
    plain: Any = OmegaConf.to_container(config, resolve=False)
    for path, schema in CLOSED.items():
        try:
            node = config[path] if path else config
        except OmegaConfBaseException:  # it has no value, which is reported as such
            continue
        known = [key.name for key in fields(schema)]
        for key in node if isinstance(node, DictConfig) else ():
            if key not in known:
                yield _unknown(path, str(key), plain, known)


def _unknown(path: str, key: str, plain: Mapping[str, Any], known: list[str]) -> ConfigError:
    node = plain[path] if path else plain
    place = f" in {path}" if path else ""
    return ConfigError(
        f"there is no key {key!r}{place}, and nobody would read it",
        where=f"{path}.{key}".lstrip("."),
        seen=f"{key}: {node[key]!r}"[:80],
        fix=did_you_mean(key, known) if path else _fix(key, plain, known),
    )


def _fix(key: str, plain: Mapping[str, Any], known: list[str]) -> str:
    if key in _MEANT:
        return _MEANT[key]
    whole = {name: value for name, value in plain.items() if name != key}
    if deeper := meant(key, _as_typed(plain[key]), whole):
        return f"did you mean {' or '.join(deeper)}?"
    own = f"+constants.{key}=... keeps a value of your own, for ${{constants.{key}}}"
    return f"{did_you_mean(key, {*known, *(plain.get('problems') or {})})}; {own}"


def meant(name: str, value: str | None, plain: Any, before: str = "") -> list[str]:
    """What to type to give `name` this value, where it is a key deeper in a plain config: classifier.optimizer.lr=0.1.

    value    as it was typed; None where it was not
    before   the path of the plain config in the whole one
    """
    lines = []
    for path, present in keys_below(name, plain):
        short = f"{before}.{path}".lstrip(".").removeprefix("problems.")
        if value is None:
            lines.append(short)
        elif isinstance(present, list) and not value.startswith("["):
            lines.append(f"{short}=[{value}]")
        else:
            lines.append(f"{short}={value}")
    return lines


def keys_below(name: str, node: Any) -> list[tuple[str, Any]]:
    """Where `name` is a key below the keys of a plain node: dotted paths, and what is there."""
    children = node.items() if isinstance(node, Mapping) else ()
    return [
        (f"{key}.{path}", present)
        for key, child in children
        if isinstance(child, Mapping)
        for path, present in ([(name, child[name])] if name in child else keys_below(name, child))
    ]


def _as_typed(value: Any) -> str | None:
    """A value in Hydra's grammar; None for a mapping."""
    if isinstance(value, list):
        items = [_as_typed(item) for item in value]
        return None if None in items else f"[{','.join(map(str, items))}]"
    if isinstance(value, dict):
        return None
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
