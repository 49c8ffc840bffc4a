"""What a config file may not do, looked at before Hydra reads it: set Hydra itself, or unfold without end. No torch."""

from __future__ import annotations

from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import yaml

from mlorun.errors import ConfigError

LARGEST_FILE = 1_000_000  # bytes
MOST_NODES = 3_000  # once every alias is written out; Hydra takes a second for 10,000
DEEPEST = 100
# what a file may say of Hydra: where a sweep goes, and over what it runs
HYDRA_KEYS = {"sweep": {"dir"}, "sweeper": {"params"}, "mode": None}


def require_bounded(path: Path) -> None:
    """Raise ConfigError for a file that is too large, too deep, or whose aliases unfold to more than a config holds."""
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise ConfigError(
            "a config file is too large", where=str(path), seen=f"{size:,} bytes", fix="a megabyte at most"
        )
    try:
        text = path.read_text(encoding="utf-8")
        if _brackets(text) > DEEPEST:  # the parser takes the square of the depth
            raise _too_deep(path)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        nodes = 0 if root is None else _unfolded(root, {}, 0, path)
    except RecursionError as error:
        raise _too_deep(path) from error
    except (yaml.YAMLError, UnicodeDecodeError):
        return  # whoever reads it next says what and where
    if nodes > MOST_NODES:
        raise ConfigError(
            "a config file has too many values, its aliases written out",
            where=str(path),
            seen=f"{nodes:.2g} values",
            fix=f"{MOST_NODES:,} values at most",
        )


def require_no_mark(path: Path) -> None:
    """Raise ConfigError for a file with a byte order mark: Hydra would not see its first line."""
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) == BOM_UTF8:
            raise ConfigError(
                "a config file begins with a byte order mark",
                where=str(path),
                seen="EF BB BF, before its first line",
                fix="save it as UTF-8 without one (without BOM, or signature)",
            )


def _brackets(text: str) -> int:
    """How deep brackets stand in each other at most."""
    depth = deepest = 0
    for mark in text:
        if mark in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif mark in "]}":
            depth -= 1
    return deepest


def _unfolded(node: yaml.Node, known: dict[int, int], depth: int, path: Path) -> int:
    """How many values a node is, once every alias is written out; each node is visited once."""
    if depth > DEEPEST:
        raise _too_deep(path)
    if id(node) in known:
        if known[id(node)] < 0:
            raise ConfigError("an alias of a config file contains itself", where=str(path), fix="write it out")
        return known[id(node)]
    known[id(node)] = -1  # being visited
    count = 1
    if isinstance(node, yaml.SequenceNode):
        count += sum(_unfolded(item, known, depth + 1, path) for item in node.value)
    elif isinstance(node, yaml.MappingNode):
        count += sum(_unfolded(value, known, depth + 1, path) for _, value in node.value)
    known[id(node)] = count
    return count


def _too_deep(path: Path) -> ConfigError:
    return ConfigError(
        "a config file is nested too deeply",
        where=str(path),
        fix=f"{DEEPEST} levels at most",
        seen=f"more than {DEEPEST}",
    )


def require_defaults_list(where: str, content: Any) -> None:
    """Raise ConfigError where the defaults list of a file is none.

    where     the file, as a reader knows it
    content   of the file, with its defaults list
    """
    entries = content.get("defaults") if isinstance(content, dict) else None
    if entries is None:
        return
    bad = next((entry for entry in entries if not _is_entry(entry)), None) if isinstance(entries, list) else entries
    if bad is not None or (isinstance(entries, list) and None in entries):
        raise ConfigError(
            "a defaults list holds what is no entry" if isinstance(entries, list) else "a defaults list is no list",
            where=f"the defaults list of {where}",
            seen=str(bad)[:80],
            fix="an entry is `- GROUP: OPTION`, `- /GROUP@PLACE: OPTION`, `- override /GROUP: OPTION` or `- FILE`",
        )


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return isinstance(entry, str) and bool(entry.strip())
    if len(entry) != 1:
        return False
    ((key, option),) = entry.items()
    names = option if isinstance(option, list) else [option]
    return isinstance(key, str) and bool(key.strip()) and all(name is None or isinstance(name, str) for name in names)


def require_no_hydra(name: str, package: str | None, content: Any) -> None:
    """Raise ConfigError where a file of the user's sets Hydra: it can run code (callbacks, logging, environment).

    name      of the file, without its ending: experiment/mine
    package   of its header, if it has one
    content   with its defaults list
    """
    where = f"configs/{name}.yaml"
    if "hydra" in name.split("/"):
        raise _sets_hydra(where, name)
    if package is not None and "hydra" in package.split("."):
        raise _sets_hydra(where, f"@package {package}")
    if not isinstance(content, dict):
        return
    for entry in content.get("defaults") or ():
        words = " ".join(map(str, entry)) if isinstance(entry, dict) else str(entry)
        if "hydra" in words.replace("@", "/").replace(".", "/").replace(" ", "/").replace(":", "/").split("/"):
            raise _sets_hydra(where, words)
    own = content.get("hydra")
    if own is None:
        return
    for key, value in own.items() if isinstance(own, dict) else (("", own),):
        allowed = HYDRA_KEYS.get(str(key), set())
        if allowed is None or (isinstance(value, dict) and allowed and set(value) <= allowed):
            continue
        raise _sets_hydra(where, f"hydra.{key}")


def _sets_hydra(where: str, seen: str) -> ConfigError:
    return ConfigError(
        "a config file may not set Hydra: that can run code",
        where=where,
        seen=seen,
        fix="on the command line you may; in a file only hydra.sweep.dir, hydra.sweeper.params, hydra.mode",
    )
