"""What Hydra, OmegaConf and YAML raise about a config, as a ConfigError with a place and a fix. No torch."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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
from omegaconf.errors import OmegaConfBaseException

from mlorun.config.locations import groups
from mlorun.config.typed import first_line, in_text, typed_for
from mlorun.config.wrong_choices import chosen_twice, missing_option, no_option, nothing_to_override, unused_choice
from mlorun.config.wrong_keys import key_or_value
from mlorun.errors import ConfigError, MlorunError, did_you_mean

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
_LONG = 200  # characters of an argument, beside the name of a file


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
            return missing_option(link, arguments)
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
    file = in_text(r"In '([^']+)': \w+ raised while", error)
    for link in chain:
        if isinstance(link, OmegaConfBaseException):
            return key_or_value(link, file, arguments)
    return _composition(error, arguments)


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    seen: set[int] = set()  # causes and contexts may lead in a circle
    while link is not None and id(link) not in seen:
        seen.add(id(link))
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
        return ConfigError("a config is not YAML", seen=first_line(error), fix="correct it")
    mark = error.problem_mark
    return ConfigError(
        "a config is not YAML",
        where=f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}",
        seen=error.problem,
        fix="correct that line; often it is the indentation, or a bracket or quote left open",
    )


def _syntax(error: OverrideParseException) -> ConfigError:
    lines = [line for line in str(error).splitlines() if not line.startswith(("See https", "Error parsing override"))]
    fix = "key=value; +key=value adds a key, ~key removes one; quote brackets, braces and spaces from the shell"
    if error.override and error.override.startswith("-"):
        sweep = "; only a run is a sweep: mlorun -m OVERRIDES..." if error.override in ("-m", "--multirun") else ""
        return ConfigError("a flag has no place here", where=error.override, fix=f"leave it out{sweep}")
    if "EQUAL" in str(error):
        fix = f"{error.override}=VALUE; a verb comes first: mlorun VERB OVERRIDES..."
    return ConfigError("an override cannot be read", where=error.override, seen=" ".join(lines), fix=fix)


def _composition(error: BaseException, arguments: Sequence[str]) -> ConfigError:
    """An error that only its text tells from others."""
    text = str(error)
    message = first_line(error)
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
        return nothing_to_override(nothing[1], nothing[2], nothing[3])
    if choice := re.search(r"Could not override '([^'@]+)(?:@([^']+))?'\.", text):
        return unused_choice(choice[1], choice[2], arguments)
    if repeated := in_text(r"(\S+) appears more than once|Multiple values for (\S+)\. ", error):
        return chosen_twice(repeated, arguments)
    if group := in_text(r"config group '([^']+)' does not exist", error):
        return ConfigError(
            f"there is no config group {group!r}",
            where=typed_for(group, arguments),
            fix=did_you_mean(group, groups()),
        )
    if key := in_text(r"Could not delete from config\. '([^']+)' does not exist", error):
        return ConfigError(f"there is no {key} to delete", where=typed_for(key, arguments), fix="drop the override")
    if key := in_text(r"An item is already at '([^']+)'", error):
        return ConfigError(f"{key} is there already", where=typed_for(key, arguments), fix=f"{key}=... without the +")
    if override := in_text(r"(?:Ambiguous value for argument|Sweep parameters) '([^']+)'", error):
        key, _, value = override.partition("=")
        fix = "mlorun -m ... runs one after another"
        if key.partition("@")[0] not in groups():
            fix += f"; '{key}=[{value}]' is a list, \"{key}='{value}'\" text with a comma"
        return ConfigError("several values for one run", where=override, fix=fix)
    if message.startswith("Config group override must be"):
        return no_option(message, arguments)
    if isinstance(error, InstantiationException):
        return ConfigError(message, where=in_text(r"full_key: (\S+)", error))
    # the second line of Hydra's message, where there is one, is its advice
    rest = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    return ConfigError(message, fix=rest[0] if rest else None)
