"""An option that is not there, belongs elsewhere or is chosen twice: the line to type, or to write. No torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from hydra.errors import MissingConfigException

from mlorun.config.locations import OURS, groups, options
from mlorun.config.option_files import defaults_list
from mlorun.config.schema import PLACED_GROUPS
from mlorun.config.shorthand import PROBLEM
from mlorun.config.typed import both, first_line, in_text, problems_of, typed_for
from mlorun.errors import ConfigError, did_you_mean, nearest

EXPERIMENT = "experiment"  # the group of experiments
# groups whose options are chosen for one problem: NAME.GROUP=OPTION
OF_A_PROBLEM = (*PLACED_GROUPS, PROBLEM)
_MOST_NAMES = 24  # options that a fix lists


def no_experiment() -> ConfigError:
    """A command needs the problems of an experiment, and names none."""
    return ConfigError(
        "no experiment was chosen", fix=f"mlorun experiment=mwn_digits, or another; mlorun ls {EXPERIMENT} lists them"
    )


def missing_option(error: MissingConfigException, arguments: Sequence[str]) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").replace(f"/{OURS}/", "/").rpartition("/")
    chosen_by = re.compile(rf"\+?{re.escape(group)}(@[^=]*)?=.*\b{re.escape(option)}\b.*", re.DOTALL)
    where = next((text for text, full in both(arguments) if chosen_by.fullmatch(full)), None)
    parent = in_text(r"In '([^']+)':", error)
    if where is None and parent not in (None, "config"):
        where = f"the defaults list of configs/{parent}.yaml"
    if group == "hydra/launcher":
        return ConfigError(
            f"Hydra's launcher {option} is not installed here",
            where=where,
            seen=f"installed: {', '.join(map(str, error.options or ()))}",
            fix=f"leave it out: mlorun -m runs the jobs of a sweep itself; or pip install hydra-{option}-launcher",
        )
    if known := [str(name) for name in error.options or options(group)]:
        fix = did_you_mean(option, known)
        if len(known) > _MOST_NAMES:
            near = nearest(option, known)
            fix = f"{f'did you mean {near}? ' if near else ''}mlorun ls {group} lists them"
        places = (f"configs/{group}/{option}.yml", f"configs/{option}.yaml", f"{group}/{option}.yaml", f"{option}.yaml")
        if elsewhere := next((place for place in places if os.path.isfile(place)), None):
            fix = f"{elsewhere} is looked for as configs/{group}/{option}.yaml"
        return ConfigError(f"{group} has no option {option!r}", where=where, fix=fix)
    if group:
        return ConfigError(f"there is no config group {group!r}", where=where, fix=did_you_mean(group, groups()))
    return ConfigError(f"there is no config {option!r}", where=where, seen=first_line(error))


def no_option(message: str, arguments: Sequence[str]) -> ConfigError:
    """A group is given something that is no name."""
    empty = [text for text in arguments if text.endswith("=null")]
    where = next((text for text in empty if text.partition("=")[0].rpartition(".")[2] in groups()), None)
    if where is None:
        return ConfigError(
            "an option is chosen by its name", seen=message, fix="GROUP=OPTION; mlorun ls GROUP names them"
        )
    key = where.partition("=")[0]
    none = "none" in options(key.rpartition(".")[2])
    return ConfigError(
        "an option is chosen by its name, and null is none",
        where=where,
        fix=f"{key}=none" if none else f"'~{key}' chooses nothing",
    )


def without_problem(group: str, where: str | None, problems: Sequence[str]) -> ConfigError:
    """An option of a problem's group was chosen, or changed, and no problem named."""
    names = " or ".join(f"{name}.{group}=OPTION" for name in problems or ["NAME"])
    message = f"{group} belongs to a problem" if group != PROBLEM else "which problem of the experiment is not named"
    return ConfigError(message, where=where, fix=f"name the problem: {names}")


def unused_choice(group: str, package: str | None, arguments: Sequence[str]) -> ConfigError:
    """A group is overridden that this config does not choose from."""
    where = typed_for(f"{group}@{package}" if package else group, arguments)
    problems = problems_of(arguments)
    if group in OF_A_PROBLEM and package is None:
        return without_problem(group, where, problems)
    named = re.fullmatch(r"problems\.([^.]+)(\..*)?", package or "")
    if named and named[1] not in problems:
        return ConfigError(f"there is no problem {named[1]!r}", where=where, fix=did_you_mean(named[1], problems))
    written = f"{group}@{package}" if package else group
    return ConfigError(f"this config does not choose from {written}", where=where, fix=f"+{written}=... adds it")


def chosen_twice(key: str, arguments: Sequence[str]) -> ConfigError:
    """Two entries of defaults lists choose from one group for one place."""
    group, _, package = key.partition("@")
    experiment = next((text.partition("=")[2] for text in arguments if text.startswith(f"{EXPERIMENT}=")), "")
    file = options(EXPERIMENT).get(experiment)
    for entry in defaults_list(file) if file is not None else ():
        for name, option in entry.items() if isinstance(entry, dict) else ():
            if str(name).lstrip("/") == key:
                return ConfigError(
                    f"{key} is chosen already",
                    where=f"the defaults list of configs/{EXPERIMENT}/{experiment}.yaml",
                    seen=f"- {name}: {option}",
                    fix=f"the last entry, after _self_: - override /{key}: {option}",
                )
    return ConfigError(
        f"two defaults lists choose from {key}",
        where=package or group,
        fix=f"where the second is meant, write it after _self_ as: override /{key}: OPTION",
    )


def nothing_to_override(file: str, group: str, package: str) -> ConfigError:
    """A file has an `override` entry for what no defaults list chooses."""
    where = f"the defaults list of configs/{file}.yaml"
    if package.startswith(f"{EXPERIMENT}."):
        return lacks_first_line(f"configs/{file}.yaml", f"override /{group}, which would stand at {package}")
    fix = "drop the word override"
    if group in PLACED_GROUPS:
        fix = f"choose one in the defaults list of the problem's option, /{group}@{group}: OPTION; or {fix}"
    message = f"configs/{file}.yaml overrides {group}@{package}, which nothing chooses before"
    return ConfigError(message, where=where, fix=fix)


def lacks_first_line(where: str, seen: str | None = None) -> ConfigError:
    """An experiment's file says nothing of where its keys go, and they would go below `experiment`."""
    return ConfigError(
        "an experiment lacks its first line", where=where, seen=seen, fix="begin the file with: # @package _global_"
    )
