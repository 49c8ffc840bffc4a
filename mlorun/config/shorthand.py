"""Overrides that begin with a problem's name, written out in Hydra's grammar. No torch.

    classifier.optimizer.lr=0.05              problems.classifier.optimizer.lr=0.05
    classifier.hypergradient=neumann          hypergradient@problems.classifier.hypergradient=neumann
    classifier.problem=weighted_classifier    problem@problems.classifier=weighted_classifier

The second is for the placed groups, as is `problems.classifier.hypergradient=neumann`; the third is for the problem
itself. Both get a `+` where the experiment does not choose from that group. Everything else is passed on as it is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mlorun.config.schema import PLACED_GROUPS, TOP_KEYS

PRIMARY = "config"  # the name of the config that every composition starts from
PROBLEM = "problem"  # the group whose options are whole problems

_KEY = r"[^\W\d][\w-]*"
_SHORT = re.compile(rf"(?P<sign>\+\+|\+|~)?(?P<first>{_KEY})\.(?P<rest>[^=@/]+)(?P<value>=.*)?", re.DOTALL)
_DELETED = re.compile(rf"~{_KEY}\.[^=@/]+")
# what `with_choices` composed, as long as Hydra stays initialized: an error screen asks for the same several times
_composed: WeakKeyDictionary[Hydra, dict[tuple[str, ...], DictConfig | None]] = WeakKeyDictionary()


@dataclass(frozen=True)
class Experiment:
    """What short forms can refer to: problems by name, and the groups chosen from, as `group@package`."""

    problems: frozenset[str]
    choices: frozenset[str]


def expand(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with short forms written out, one for one. Hydra must be initialized."""
    matches = [_match(text) for text in arguments]
    if not any(matches):
        return list(arguments)
    # which groups the other short forms can refer to depends on the problems that were chosen
    of_problems = [match if match and _problem_and_key(match)[1] == PROBLEM else None for match in matches]
    others = [None if first else match for first, match in zip(of_problems, matches, strict=True)]
    return _written_out(_written_out(arguments, of_problems), others)


def _match(text: str) -> re.Match[str] | None:
    match = _SHORT.fullmatch(text)
    if match is None or (match["value"] is None and not _DELETED.fullmatch(text)):
        return None
    problem, key = _problem_and_key(match)
    if match["first"] == "problems":
        # a value below a problem is written out already; only the choice of an option is not
        return match if problem and key in (*PLACED_GROUPS, PROBLEM) else None
    return None if match["first"] in (*TOP_KEYS, "hydra") else match


def _problem_and_key(match: re.Match[str]) -> tuple[str, str]:
    """The problem's name, and what follows it."""
    if match["first"] != "problems":
        return match["first"], match["rest"]
    problem, _, key = match["rest"].partition(".")
    return problem, key


def _written_out(arguments: Sequence[str], matches: Sequence[re.Match[str] | None]) -> list[str]:
    """The arguments, those with a match written out."""
    if not any(matches):
        return list(arguments)
    experiment = chosen([text for text in arguments if "=" in text and not text.startswith("-")])
    return [
        _long_form(match, text, experiment) if match else text for match, text in zip(matches, arguments, strict=True)
    ]


def _long_form(match: re.Match[str], text: str, experiment: Experiment | None) -> str:
    sign, value = match["sign"] or "", match["value"] or ""
    problem, key = _problem_and_key(match)
    # where the experiment cannot be composed, the text is expanded all the same, and Hydra reports the fault
    if experiment is not None and problem not in experiment.problems:
        return text
    if key not in (*PLACED_GROUPS, PROBLEM) or value.startswith("={"):
        return f"{sign}problems.{problem}.{key}{value}"
    placed = f"{PROBLEM}@problems.{problem}" if key == PROBLEM else f"{key}@problems.{problem}.{key}"
    if sign == "~" or experiment is None:
        return f"{sign}{placed}{value}"
    return f"{placed}{value}" if placed in experiment.choices else f"+{placed}{value}"


def chosen(overrides: Sequence[str]) -> Experiment | None:
    """The problems and choices of a config with these overrides of groups; None where it cannot be composed."""
    config = with_choices(overrides)
    if config is None:
        return None
    problems = OmegaConf.select(config, "problems") or {}
    return Experiment(frozenset(map(str, problems)), frozenset(config.hydra.runtime.choices))


def with_choices(overrides: Sequence[str]) -> DictConfig | None:
    """The config with those of these overrides that choose an option, to be read; None where it cannot be composed.

    Of options that are swept over, the first is taken.
    """
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    loader = hydra.config_loader
    known = _composed.setdefault(hydra, {})
    try:
        groups = set(loader.list_groups("")) - {"hydra"}
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        choices = tuple(_first(override) for override in parsed if override.key_or_group in groups)
        if choices not in known:
            known[choices] = None  # for the next who asks, if composing it raises
            known[choices] = loader.load_configuration(PRIMARY, list(choices), run_mode=RunMode.RUN)
        return known[choices]
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, RecursionError):
        return None


def _first(override: Override) -> str:
    if not override.is_sweep_override():
        return override.input_line or ""
    return f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
