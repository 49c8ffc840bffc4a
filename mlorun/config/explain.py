"""What Hydra, OmegaConf and YAML raise about a config, as a ConfigError with a place and a fix. No torch."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import omegaconf
import yaml
from hydra._internal import defaults_list
from hydra.errors import (
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from mlorun.config.locations import OURS, groups, options
from mlorun.config.option_files import defaults_list as entries_of
from mlorun.config.schema import CLOSED, PLACED_GROUPS, TOP_KEYS
from mlorun.config.shorthand import PROBLEM, chosen, expand
from mlorun.config.unknown import meant
from mlorun.errors import ConfigError, MlorunError, did_you_mean, nearest

FOREIGN = (HydraException, OmegaConfBaseException, yaml.YAMLError)
# raised by Hydra as bare ValueErrors
_HYDRA_VALUE_ERRORS = (
    "Config group override",
    "Only one of --run",
    "The --resolve flag",
    "Config overrides are not",
    "Invalid defaults list in",
)
_THEIRS = tuple(Path(str(module.__file__)).parent for module in (hydra, omegaconf))
_OURS = Path(__file__).parents[1]
_MOST_NAMES = 24  # options that a fix lists
_LONG = 200  # characters of an argument, beside the name of a file
EXPERIMENT = "experiment"  # the group of experiments
# what other programs call keys of mlorun
OTHER_WORDS = {
    **dict.fromkeys(("epochs", "steps", "max_steps", "iterations"), "engine.train_iters=N, counted in global steps"),
    **dict.fromkeys(("gpu", "gpus", "cuda", "accelerator"), "device=cuda, or device=auto"),
    **dict.fromkeys(("output_dir", "out", "save_dir", "root"), "run.root=FOLDER"),
}
# groups whose options are chosen for one problem: NAME.GROUP=OPTION
OF_A_PROBLEM = (*PLACED_GROUPS, PROBLEM)


@contextmanager
def explaining(arguments: Sequence[str]) -> Iterator[None]:
    """Turn what Hydra, OmegaConf and YAML raise about a config into a ConfigError. Other errors pass."""
    try:
        yield
    except Exception as error:
        if is_about_config(error):
            raise explain(error, arguments) from error
        raise


def is_about_config(error: Exception) -> bool:
    """Whether `explain` can turn it into a ConfigError."""
    by_text = isinstance(error, ValueError) and str(error).startswith(_HYDRA_VALUE_ERRORS)
    return by_text or isinstance(error, FOREIGN) or _is_circle(error) or _is_too_long(error) or _is_raised_inside(error)


def explain(error: BaseException, arguments: Sequence[str] = ()) -> MlorunError:
    """The MlorunError for `error`; `arguments` as they were typed. Hydra must be initialized."""
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
        if _is_too_long(link):
            return ConfigError(
                "an option's name is longer than a file's can be",
                where=next((f"{text[:60]}..." for text in arguments if len(text) > _LONG), None),
                seen=f"{Path(str(getattr(link, 'filename', ''))).name[:40]}...",
                fix="GROUP=OPTION; mlorun ls GROUP names the options",
            )
        if _is_circle(link):
            return ConfigError(
                "defaults lists name each other in a circle",
                where=next((text for text in arguments if text.startswith("experiment=")), None),
                fix="each file names the one that it starts from, and never one that starts from itself",
            )
    file = _in_text(r"In '([^']+)': \w+ raised while", error)
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return _key_or_value(link, file, arguments)
    return _composition(error, arguments)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        # Hydra raises errors of a YAML file without naming their cause
        link = link.__cause__ or link.__context__


def _is_circle(error: BaseException) -> bool:
    """Whether Hydra followed defaults lists without an end."""
    frames = traceback.walk_tb(error.__traceback__) if isinstance(error, RecursionError) else ()
    return any(frame.f_code.co_filename == defaults_list.__file__ for frame, _ in frames)


def _is_raised_inside(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf broke on a config: an assertion of theirs, an operation on a value of another type."""
    if not isinstance(error, AssertionError | TypeError | ValueError | AttributeError | KeyError):
        return False
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    theirs = [index for index, file in enumerate(files) if any(root in Path(file).parents for root in _THEIRS)]
    ours = [index for index, file in enumerate(files) if _OURS in Path(file).parents]
    return bool(theirs) and theirs[-1] > max(ours, default=-1)


def _is_too_long(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


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
    group, _, option = (error.missing_cfg_file or "").replace(f"/{OURS}/", "/").rpartition("/")
    chosen_by = re.compile(rf"\+?{re.escape(group)}(@[^=]*)?=.*\b{re.escape(option)}\b.*", re.DOTALL)
    where = next((text for text, full in _both(arguments) if chosen_by.fullmatch(full)), None)
    parent = _in_text(r"In '([^']+)':", error)
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
        if elsewhere := next((place for place in places if Path(place).is_file()), None):
            fix = f"{elsewhere} is looked for as configs/{group}/{option}.yaml"
        return ConfigError(f"{group} has no option {option!r}", where=where, fix=fix)
    if group:
        return ConfigError(f"there is no config group {group!r}", where=where, fix=did_you_mean(group, groups()))
    return ConfigError(f"there is no config {option!r}", where=where, seen=_first_line(error))


def _syntax(error: OverrideParseException) -> ConfigError:
    lines = [line for line in str(error).splitlines() if not line.startswith(("See https", "Error parsing override"))]
    fix = "key=value; +key=value adds a key, ~key removes one; quote brackets, braces and spaces from the shell"
    if error.override and error.override.startswith("-"):
        sweep = "; only a run is a sweep: mlorun -m OVERRIDES..." if error.override in ("-m", "--multirun") else ""
        return ConfigError("a flag has no place here", where=error.override, fix=f"leave it out{sweep}")
    if "EQUAL" in str(error):
        fix = f"{error.override}=VALUE; a verb comes first: mlorun VERB OVERRIDES..."
    return ConfigError("an override cannot be read", where=error.override, seen=" ".join(lines), fix=fix)


def _key_or_value(error: OmegaConfBaseException, file: str | None, arguments: Sequence[str]) -> ConfigError:
    key = str(getattr(error, "full_key", None) or _in_text(r"full_key: (\S+)", error) or "")
    where = f"configs/{file}.yaml: {key}" if file else _typed(key, arguments)
    message = _first_line(error)
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
    if "could not be converted to Integer" in message and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", value):
        number = float(value)
        return f"{key}={int(number)}" if number.is_integer() else f"{key}={round(number)}: a whole number"
    return None


def _unknown_key(
    key: str, siblings: Iterable[str], where: str | None, arguments: Sequence[str], plain: Any = None
) -> ConfigError:
    before, _, name = key.rpartition(".")
    problems = _problems(arguments)
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
        return _without_problem(name, where, problems)
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


def _composition(error: BaseException, arguments: Sequence[str]) -> ConfigError:
    """An error that only its text tells from others."""
    text = str(error)
    message = _first_line(error)
    if _is_raised_inside(error) and not text.startswith(_HYDRA_VALUE_ERRORS):
        return ConfigError(
            "this config cannot be composed",
            where=next((word for word in arguments if word.startswith("experiment=")), None),
            seen=message if message == type(error).__name__ else f"{type(error).__name__}: {message}",
            fix="an entry of a defaults list is '- GROUP: OPTION', a word of a command KEY=VALUE; OPTION is one name",
        )
    if early := re.search(r"In (\S+): Override '(\S+) : ([^']*)' is defined before", text):
        return ConfigError(
            f"override {early[2]} stands before entries that add something",
            where=f"the defaults list of configs/{early[1]}.yaml",
            seen=f"- override /{early[2]}: {early[3]}",
            fix="move that entry to the end of the list, after _self_",
        )
    if nothing := re.search(r"In '([^']+)': Could not override '([^'@]+)@([^']+)'\.", text):
        return _nothing_to_override(nothing[1], nothing[2], nothing[3])
    if choice := re.search(r"Could not override '([^'@]+)(?:@([^']+))?'\.", text):
        return _unused_choice(choice[1], choice[2], arguments)
    if repeated := _in_text(r"(\S+) appears more than once|Multiple values for (\S+)\. ", error):
        return _chosen_twice(repeated, arguments)
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
    if message.startswith("Config group override must be"):
        return _no_option(message, arguments)
    if isinstance(error, InstantiationException):
        return ConfigError(message, where=_in_text(r"full_key: (\S+)", error))
    # the second line of Hydra's message, where there is one, is its advice
    rest = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    return ConfigError(message, fix=rest[0] if rest else None)


def _unused_choice(group: str, package: str | None, arguments: Sequence[str]) -> ConfigError:
    """A group is overridden that this config does not choose from."""
    where = _typed(f"{group}@{package}" if package else group, arguments)
    problems = _problems(arguments)
    if group in OF_A_PROBLEM and package is None:
        return _without_problem(group, where, problems)
    named = re.fullmatch(r"problems\.([^.]+)(\..*)?", package or "")
    if named and named[1] not in problems:
        return ConfigError(f"there is no problem {named[1]!r}", where=where, fix=did_you_mean(named[1], problems))
    written = f"{group}@{package}" if package else group
    return ConfigError(f"this config does not choose from {written}", where=where, fix=f"+{written}=... adds it")


def _no_option(message: str, arguments: Sequence[str]) -> ConfigError:
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


def _nothing_to_override(file: str, group: str, package: str) -> ConfigError:
    """A file has an `override` entry for what no defaults list chooses."""
    where = f"the defaults list of configs/{file}.yaml"
    if package.startswith(f"{EXPERIMENT}."):
        return lacks_first_line(f"configs/{file}.yaml", f"override /{group}, which would stand at {package}")
    fix = "drop the word override"
    if group in PLACED_GROUPS:
        fix = f"choose one in the defaults list of the problem's option, /{group}@{group}: OPTION; or {fix}"
    message = f"configs/{file}.yaml overrides {group}@{package}, which nothing chooses before"
    return ConfigError(message, where=where, fix=fix)


def no_experiment() -> ConfigError:
    """A command needs the problems of an experiment, and names none."""
    return ConfigError(
        "no experiment was chosen", fix=f"mlorun experiment=mwn_digits, or another; mlorun ls {EXPERIMENT} lists them"
    )


def lacks_first_line(where: str, seen: str | None = None) -> ConfigError:
    """An experiment's file says nothing of where its keys go, and they would go below `experiment`."""
    return ConfigError(
        "an experiment lacks its first line", where=where, seen=seen, fix="begin the file with: # @package _global_"
    )


def _without_problem(group: str, where: str | None, problems: Sequence[str]) -> ConfigError:
    """An option of a problem's group was chosen, or changed, and no problem named."""
    names = " or ".join(f"{name}.{group}=OPTION" for name in problems or ["NAME"])
    message = f"{group} belongs to a problem" if group != PROBLEM else "which problem of the experiment is not named"
    return ConfigError(message, where=where, fix=f"name the problem: {names}")


def _chosen_twice(key: str, arguments: Sequence[str]) -> ConfigError:
    """Two entries of defaults lists choose from one group for one place."""
    group, _, package = key.partition("@")
    experiment = next((text.partition("=")[2] for text in arguments if text.startswith(f"{EXPERIMENT}=")), "")
    file = options(EXPERIMENT).get(experiment)
    for entry in entries_of(file) if file is not None else ():
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


def _typed(key: str, arguments: Sequence[str]) -> str | None:
    """The override of `key` or of a key below it, as it was typed; without one, the key.

    OmegaConf gives some keys without what is above them.
    """
    keys = [
        (text.lstrip("+~").partition("=")[0], typed) for typed, written in _both(arguments) for text in (typed, written)
    ]
    whole = (typed for name, typed in keys if name == key or name.startswith(f"{key}."))
    inside = (typed for name, typed in keys if key.startswith(f"{name}.") and typed.partition("=")[2].startswith("{"))
    ending = (typed for name, typed in keys if name.endswith(f".{key}"))
    return next(whole, None) or next(inside, None) or next(ending, None) or key or None


def _both(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument as it was typed, and written out."""
    return zip(arguments, expand(arguments), strict=True)


def _problems(arguments: Sequence[str]) -> list[str]:
    """The problems of the chosen experiment; the other arguments are not read."""
    experiment = chosen([text for text in arguments if text.startswith("experiment=")])
    return sorted(experiment.problems) if experiment else []


def _in_text(pattern: str, error: BaseException) -> str | None:
    """The text of the first group that matches."""
    match = re.search(pattern, str(error))
    return next((group for group in match.groups() if group), None) if match else None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
