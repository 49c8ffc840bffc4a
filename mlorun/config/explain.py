"""What Hydra, OmegaConf and YAML raise about a config, as a ConfigError that a user can mend. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import yaml
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from mlorun.config.locations import groups, options
from mlorun.config.schema import PLACED_GROUPS, TOP_KEYS
from mlorun.config.shorthand import chosen, expand
from mlorun.errors import ConfigError, MlorunError, did_you_mean

FOREIGN = (HydraException, OmegaConfBaseException, yaml.YAMLError)
# raised by Hydra as bare ValueErrors
_HYDRA_VALUE_ERRORS = (
    "Config group override",
    "Only one of --run",
    "The --resolve flag",
    "Config overrides are not",
)


@contextmanager
def explaining(arguments: Sequence[str]) -> Iterator[None]:
    """Turn whatever is wrong with a config into a ConfigError. Errors that are none of Hydra's pass."""
    try:
        yield
    except Exception as error:
        if is_about_config(error):
            raise explain(error, arguments) from error
        raise


def is_about_config(error: Exception) -> bool:
    """Whether `explain` knows what it means."""
    by_word = isinstance(error, ValueError) and str(error).startswith(_HYDRA_VALUE_ERRORS)
    return by_word or isinstance(error, FOREIGN)


def explain(error: BaseException, arguments: Sequence[str] = ()) -> MlorunError:
    """The MlorunError that `error` amounts to; `arguments` as they were typed. Hydra must be initialized."""
    chain = list(_chain(error))
    for link in chain:
        if isinstance(link, MlorunError):
            return link
    for link in chain:
        if isinstance(link, yaml.YAMLError):
            return _yaml(link)
        if isinstance(link, MissingConfigException):
            return _missing_option(link, arguments)
        if isinstance(link, OverrideParseException):
            return _syntax(link)
    file = _in_text(r"In '([^']+)': \w+ raised while", error)
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return _key_or_value(link, file, arguments)
    return _composition(error, arguments)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        # Hydra raises what it found in a YAML file without naming its cause
        link = link.__cause__ or link.__context__


def _yaml(error: yaml.YAMLError) -> ConfigError:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ConfigError("a config is not YAML", seen=_first_line(error), fix="correct it")
    mark = error.problem_mark
    return ConfigError(
        "a config is not YAML",
        where=f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}",
        seen=error.problem,
        fix="correct that line; often it is the indentation, or a bracket or quote left open",
    )


def _missing_option(error: MissingConfigException, arguments: Sequence[str]) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    chosen_by = re.compile(rf"\+?{re.escape(group)}(@[^=]*)?=.*\b{re.escape(option)}\b.*", re.DOTALL)
    where = next((text for text, full in _both(arguments) if chosen_by.fullmatch(full)), None)
    parent = _in_text(r"In '([^']+)':", error)
    if where is None and parent not in (None, "config"):
        where = f"the defaults list of configs/{parent}.yaml"
    if error.options:
        known = [str(name) for name in error.options]
        return ConfigError(f"{group} has no option {option!r}", where=where, fix=did_you_mean(option, known))
    if group:
        return ConfigError(f"there is no config group {group!r}", where=where, fix=did_you_mean(group, groups()))
    return ConfigError(f"there is no config {option!r}", where=where, seen=_first_line(error))


def _syntax(error: OverrideParseException) -> ConfigError:
    said = [line for line in str(error).splitlines() if not line.startswith(("See https", "Error parsing override"))]
    fix = "key=value; +key=value adds a key, ~key removes one; quote brackets, braces and spaces from the shell"
    if "EQUAL" in str(error):
        fix = f"{error.override}=VALUE; a verb comes first: mlorun VERB OVERRIDES..."
    return ConfigError("an override cannot be read", where=error.override, seen=" ".join(said), fix=fix)


def _key_or_value(error: OmegaConfBaseException, file: str | None, arguments: Sequence[str]) -> ConfigError:
    key = str(getattr(error, "full_key", None) or _in_text(r"full_key: (\S+)", error) or "")
    where = f"configs/{file}.yaml: {key}" if file else _typed(key, arguments)
    said = _first_line(error)
    if isinstance(error, ValidationError):
        return ConfigError(f"{key or 'a value'} has the wrong type", where=where, seen=said)
    if not re.match(r"Key '.*' (not in|is not in struct)", said):
        return ConfigError(said, where=where)
    parent = getattr(error, "parent_node", None)
    known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    plain = OmegaConf.to_container(parent) if "." in key and isinstance(parent, DictConfig) else None
    return _unknown_key(key, known, where, arguments, _deeper(plain, key.rpartition(".")[2]))


def _deeper(node: Any, name: str) -> list[str]:
    """Where `name` is a key below the keys of a plain node: dotted paths."""
    children = node.items() if isinstance(node, dict) else ()
    return [
        f"{key}.{path}"
        for key, child in children
        if isinstance(child, dict)
        for path in ([name] if name in child else _deeper(child, name))
    ]


def _unknown_key(
    key: str, siblings: Iterable[str], where: str | None, arguments: Sequence[str], deeper: Sequence[str] = ()
) -> ConfigError:
    before, _, name = key.rpartition(".")
    problems = _problems(arguments)
    known = sorted({*TOP_KEYS, *problems}) if not before else sorted(siblings)
    if not before and name in PLACED_GROUPS:
        suggested = f"{problems[0] if problems else 'PROBLEM'}.{name}"
        return ConfigError(
            f"{name} belongs to a problem",
            where=where,
            fix=f"name it: {suggested}=..., or {suggested}.KEY=...",
        )
    if not before and name in groups():
        return ConfigError(
            f"{name} is a group of options",
            where=where,
            fix=f"{name}=OPTION; known: {', '.join(options(name))}",
        )
    fix = f"did you mean {' or '.join(deeper)}?" if deeper else did_you_mean(name, known)
    if before and not deeper:
        fix += f"; +{key}=... adds a key"
    return ConfigError(f"there is no key {name!r}{f' in {before}' if before else ''}", where=where, fix=fix)


def _composition(error: BaseException, arguments: Sequence[str]) -> ConfigError:
    """What Hydra says in words alone."""
    text = str(error)
    said = _first_line(error)
    if choice := re.search(r"Could not override '([^'@]+)(?:@([^']+))?'\.", text):
        return _unused_choice(choice[1], choice[2], arguments)
    if group := _in_text(r"config group '([^']+)' does not exist", error):
        return ConfigError(
            f"there is no config group {group!r}",
            where=_typed(group, arguments),
            fix=did_you_mean(group, groups()),
        )
    if key := _in_text(r"Could not delete from config\. '([^']+)' does not exist", error):
        return ConfigError(f"there is no {key} to delete", where=_typed(key, arguments), fix="drop the override")
    if key := _in_text(r"An item is already at '([^']+)'", error):
        return ConfigError(f"{key} is there already", where=_typed(key, arguments), fix=f"{key}=... without the +")
    if override := _in_text(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", error):
        key, _, value = override.partition("=")
        fix = "mlorun -m ... runs one after another"
        if key.partition("@")[0] not in groups():
            fix += f"; '{key}=[{value}]' is a list, \"{key}='{value}'\" text with a comma"
        return ConfigError("several values for one run", where=override, fix=fix)
    if said.startswith("Config group override must be"):
        return ConfigError("an option is chosen by its name", seen=said, fix="GROUP=OPTION; mlorun ls GROUP names them")
    if isinstance(error, InstantiationException):
        return ConfigError(said, where=_in_text(r"full_key: (\S+)", error))
    # the second line of Hydra's message, where there is one, is its advice
    rest = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    return ConfigError(said, fix=rest[0] if rest else None)


def _unused_choice(group: str, package: str | None, arguments: Sequence[str]) -> ConfigError:
    """A group is overridden that this config does not choose from."""
    where = _typed(f"{group}@{package}" if package else group, arguments)
    problems = _problems(arguments)
    if group in PLACED_GROUPS and package is None:
        names = [f"{name}.{group}=..." for name in problems] or [f"PROBLEM.{group}=..."]
        return ConfigError(f"{group} belongs to a problem", where=where, fix=f"name it: {', or '.join(names)}")
    named = re.fullmatch(r"problems\.([^.]+)\..*", package or "")
    if named and named[1] not in problems:
        return ConfigError(f"there is no problem {named[1]!r}", where=where, fix=did_you_mean(named[1], problems))
    written = f"{group}@{package}" if package else group
    return ConfigError(f"this config does not choose from {written}", where=where, fix=f"+{written}=... adds it")


def _typed(key: str, arguments: Sequence[str]) -> str | None:
    """The override that says something about `key`, as it was typed; else the key."""
    for typed, written in _both(arguments):
        for text in (typed, written):
            said = re.split("=", text.lstrip("+~"))[0]
            if said == key or said.startswith(f"{key}."):
                return typed
    return key or None


def _both(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument as it was typed, and written out."""
    return zip(arguments, expand(arguments), strict=True)


def _problems(arguments: Sequence[str]) -> list[str]:
    """The problems of the experiment, without whatever else the arguments say."""
    experiment = chosen([text for text in arguments if text.startswith("experiment=")])
    return sorted(experiment.problems) if experiment else []


def _in_text(pattern: str, error: BaseException) -> str | None:
    found = re.search(pattern, str(error))
    return found[1] if found else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
