"""What an option's YAML file tells: its `# about:` line, a hypergradient's summary, its defaults list. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mlorun.config.file_checks import LARGEST_FILE, require_bounded
from mlorun.errors import ConfigError


def description(path: Path) -> str:
    """The text of the `# about:` line; empty where there is none."""
    for line in _lines(path):
        if line.startswith("# about:"):
            return line.removeprefix("# about:").strip()
        if not line.startswith("#"):
            break
    return ""


def option_summary(path: Path) -> dict[str, str]:
    """The head of a hypergradient's YAML: formula, cost, memory and when to use it; {} for other files.

    Its lines are `about`, the formula, `cost: ...; memory of ...`, `nested: ...` where it differentiates through a
    problem that steers others, `use it ...`, and a command.
    """
    head: list[str] = []
    for line in _lines(path)[1:]:
        if not line.startswith("#   "):
            break
        head.append(line.removeprefix("#").strip())
    cost = next((line for line in head if line.startswith("cost: ")), "")
    use = next((line for line in head if line.startswith("use it ")), "")
    if not cost or not use:
        return {}
    seconds, _, memory = cost.removeprefix("cost: ").partition("; memory of ")
    formula = " ".join(head[: head.index(cost)])
    summary = {"formula": formula, "cost": seconds, "memory": memory}
    nested = next((line for line in head if line.startswith("nested: ")), "")
    if nested:
        summary["nested"] = nested.removeprefix("nested: ")
    return {**summary, "use it": use.removeprefix("use it ")}


def chosen_options(path: Path) -> list[str]:
    """What the defaults list of a file chooses, as one would type it: `classifier.module=mlp`, `data=sinusoids`.

    `none` is left out; another file that this one starts from is given by its name.
    """
    return list(_typed(defaults_list(path)))


def defaults_list(path: Path) -> list[Any]:
    """The defaults list as it is written; empty where there is none."""
    entries = content(path).get("defaults")
    return entries if isinstance(entries, list) else []


def content(path: Path) -> dict[Any, Any]:
    """The keys of a file as they are written; empty for one that is no YAML mapping, or that no config may be."""
    try:
        require_bounded(path)
        keys = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, ConfigError, ValueError, OSError):  # reported where it is chosen
        return {}
    return keys if isinstance(keys, dict) else {}


def _lines(path: Path) -> list[str]:
    """Of a file that a config may be; none of a larger one."""
    with open(path, "rb") as file:
        text = file.read(LARGEST_FILE + 1)
    return [] if len(text) > LARGEST_FILE else text.decode(errors="replace").splitlines()


def _typed(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        if isinstance(entry, str) and entry != "_self_":
            yield entry
        elif isinstance(entry, dict):
            for key, option in entry.items():
                if option not in (None, "none"):
                    yield f"{_place(str(key))}={option}"


def _place(key: str) -> str:
    """`override /module@problems.classifier.module` as `classifier.module`."""
    group, _, package = key.split(" ")[-1].lstrip("/").partition("@")
    if not package:
        return group
    problem = package.removeprefix("problems.")
    return f"{problem}.{group}" if group == "problem" else problem
