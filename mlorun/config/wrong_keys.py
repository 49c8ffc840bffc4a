"""A key that a config does not have, or a value of another type: the line to type. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from mlorun.config.locations import groups, options
from mlorun.config.schema import CLOSED, TOP_KEYS
from mlorun.config.typed import first_line, in_text, problems_of, typed_for
from mlorun.config.unknown import meant
from mlorun.config.wrong_choices import EXPERIMENT, OF_A_PROBLEM, lacks_first_line, without_problem
from mlorun.errors import ConfigError, did_you_mean

# what other programs call keys of mlorun
OTHER_WORDS = {
    **dict.fromkeys(("epochs", "steps", "max_steps", "iterations"), "engine.train_iters=N, counted in global steps"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "accelerator"), "device=cuda, or device=auto"),
    **dict.fromkeys(("output_dir", "out", "save_dir", "root"), "run.root=FOLDER"),
}
_NUMBER = re.compile(r"[-+]?(\d{1,15}\.?\d{0,15}|\.\d{1,15})(e[-+]?\d)?")  # that may have been meant as a whole one


def key_or_value(error: OmegaConfBaseException, file: str | None, arguments: Sequence[str]) -> ConfigError:
    key = str(getattr(error, "full_key", None) or in_text(r"full_key: (\S+)", error) or "")
    where = f"configs/{file}.yaml: {key}" if file else typed_for(key, arguments)
    message = first_line(error)
    if file and file.startswith("experiment/") and key == "experiment":
        return lacks_first_line(f"configs/{file}.yaml")
    if isinstance(error, ValidationError):
        return ConfigError(
            f"{key or 'a value'} has the wrong type", where=where, seen=message, fix=_right(where, error)
        )
    if not re.match(r"Key '.*' (not in|is not in struct)", message):
        return ConfigError(message, where=where)
    parent = getattr(error, "parent_node", None)
    known = [str(name) for name in parent] if isinstance(parent, DictConfig) else []
    plain = OmegaConf.to_container(parent) if isinstance(parent, DictConfig) else None
    return _unknown_key(key, known, where, arguments, plain)


def _right(where: str | None, error: ValidationError) -> str | None:
    """The line to type where a list, a text or a whole number was meant."""
    key, _, value = (where or "").partition("=")
    message = str(error)
    if not value:
        return None
    if "is not a ListConfig, list or tuple" in message:
        return "a list stands in brackets: KEY: [VALUE]" if value.startswith("{") else f"'{key}=[{value}]'"
    if "Cannot convert 'list' to string" in message and "," not in value:
        return f"{key}={value.strip('[]')}"
    if "could not be converted to Integer" in message and _NUMBER.fullmatch(value):
        number = float(value)
        return f"{key}={int(number)}" if number.is_integer() else f"{key}={round(number)}: a whole number"
    return None


def _unknown_key(
    key: str, siblings: Iterable[str], where: str | None, arguments: Sequence[str], plain: Any = None
) -> ConfigError:
    before, _, name = key.rpartition(".")
    problems = problems_of(arguments)
    if before == "dependencies" and (where is None or "=" in where):
        return _dependency_without_direction(name, where, problems)
    if not before and _is_short(where) and not any(text.lstrip("+").startswith("experiment=") for text in arguments):
        return ConfigError(
            f"there is no key {name!r}, and no experiment was chosen that has a problem {name}",
            where=where,
            fix=f"mlorun experiment=NAME {where}; mlorun ls {EXPERIMENT} lists them",
        )
    known = sorted({*TOP_KEYS, *problems}) if not before else sorted(siblings)
    if not before and name in OF_A_PROBLEM:
        return without_problem(name, where, problems)
    if not before and name in groups():
        return ConfigError(
            f"{name} is a group of options",
            where=where,
            fix=f"{name}=OPTION; known: {', '.join(options(name))}",
        )
    if not before and name in problems:
        fix = f"{name}.KEY=VALUE, {name}.optimizer=OPTION, or {name}.problem=OPTION in place of all of it"
        return ConfigError(f"{name} is a problem", where=where, fix=fix)
    if not before and name in OTHER_WORDS:
        return ConfigError(f"there is no key {name!r}", where=where, fix=OTHER_WORDS[name])
    value = where.partition("=")[2] if where is not None and where in arguments else None
    deeper = meant(name, value, plain, before)
    fix = f"did you mean {' or '.join(deeper)}?" if deeper else did_you_mean(name, known)
    if before and not deeper and before not in CLOSED:
        fix += f"; +{key}=... adds a key"
    return ConfigError(f"there is no key {name!r}{f' in {before}' if before else ''}", where=where, fix=fix)


def _is_short(where: str | None) -> bool:
    return where is not None and "." in where.partition("=")[0]


def _dependency_without_direction(name: str, where: str | None, problems: Sequence[str]) -> ConfigError:
    """`dependencies={upper: [lower]}`, without u2l or l2u."""
    value = where.partition("=")[2] if where else ""
    if name not in problems or not value.startswith("{"):
        value = f"{{{name if name in problems else 'UPPER'}: [LOWER]}}"
    return ConfigError(
        f"dependencies have two keys, u2l and l2u, and {name} is neither",
        where=where,
        fix=f"'dependencies.u2l={value}': whose optimum an upper problem differentiates through; l2u is its reverse",
    )
