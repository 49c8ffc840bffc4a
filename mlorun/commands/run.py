"""A command without a verb: Hydra composes, and runs one job, or several. No torch before the first job."""

from __future__ import annotations

import logging
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from mlorun.commands import sweep
from mlorun.config.compose import VERSION_BASE, expanded, explained
from mlorun.config.locations import PRIMARY_DIR
from mlorun.config.places import require_trust
from mlorun.config.resolve import resolve
from mlorun.config.shorthand import PRIMARY
from mlorun.errors import ConfigError, MlorunError, did_you_mean
from mlorun.report import show

# a sweep over one of these has several names, so its folder is called `several`
_NAMED_BY = re.compile(r"\+{0,2}(experiment|name)=.*,")
_UNNAMED_SWEEP = "hydra.sweep.dir='${run.sweep_root}/several/${now:%Y%m%d-%H%M%S-%f}'"


def run(args: Sequence[str]) -> int:
    """Hand the arguments to Hydra; the exit code."""
    # Hydra's parser takes overrides only next to each other, and --info takes one that follows it as its argument
    written = expanded(sorted(args, key=lambda text: not _is_override(text)))
    if any(map(_NAMED_BY.match, written)):
        written = _several(written)
    _check_flags(written)
    ends: list[int | Exception] = []

    def task(config: DictConfig) -> None:
        facts = HydraConfig.get()
        if facts.mode == RunMode.MULTIRUN:
            sweep.job(config, facts)
            return
        try:
            ends.append(_single(config, sweep.as_typed(facts)))
        except Exception as error:  # raised below: Hydra would add its own text to it
            ends.append(error)

    with sweep.following() as progress:
        try:
            with _arguments(written):
                at = str(PRIMARY_DIR)
                hydra.main(version_base=VERSION_BASE, config_path=at, config_name=PRIMARY)(task)()
            for end in ends:
                if isinstance(end, Exception):
                    raise end
                return end
            return progress.finish()
        except sweep.SweepRefused as refusal:
            raise refusal.error from None
        except sweep.SweepBegins as begin:
            return _swept(begin.config, args)
        except KeyboardInterrupt:
            return progress.finish(interrupted=True)
        except SystemExit as stop:  # Hydra's help and --version
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 2
        except Exception as error:
            progress.discard()
            raise explained(error, args) from error.__cause__


def _several(args: Sequence[str]) -> list[str]:
    """The arguments of a sweep over experiments or names.

    Hydra first composes without the swept keys, to learn the folder of the sweep. Without the experiment, an override
    of its problems would fail there: so it becomes a sweep too, over its one value. The folder has no name.
    """
    parser = OverridesParser.create()
    swept = []
    for text in args:
        key, _, value = text.partition("=")
        own = key.lstrip("+").startswith("problems.") or "@problems." in key
        if own and value and not text.startswith("~") and not parser.parse_override(text).is_sweep_override():
            text = f"{key}=choice({value})"
        swept.append(text)
    if any("hydra.sweep.dir=" in text for text in args):
        return swept
    return [_UNNAMED_SWEEP, *swept]


def _check_flags(args: Sequence[str]) -> None:
    """Raise the ConfigError of a flag that Hydra does not have; its own parser would exit with a usage."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        unknown = parser.parse_known_args(list(args))[1]
    except ArgumentError as error:
        raise ConfigError(str(error), where="the flags", fix="mlorun --hydra-help explains them") from error
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        raise ConfigError(
            f"there is no flag {unknown[0]}", where=" ".join(unknown), fix=did_you_mean(unknown[0], flags)
        )


def _is_override(text: str) -> bool:
    return text.startswith("~") or ("=" in text and not text.startswith("-"))


def _single(config: DictConfig, overrides: Sequence[str]) -> int:
    from mlorun.training import train  # imports torch, which is slow

    require_trust(config.trusted_packages, overrides)
    resolve(config)
    result = train(config, overrides)
    if isinstance(result.error, MlorunError):
        show(result.error)
    return result.exit_code


def _swept(config: DictConfig, args: Sequence[str]) -> int:
    try:
        return sweep.run_sweep(config)
    except Exception as error:
        raise explained(error, args) from error.__cause__


@contextmanager
def _arguments(args: Sequence[str]) -> Iterator[None]:
    """Set what hydra.main reads: sys.argv, and that it raises errors instead of printing them. Restored at the end."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    sys.argv = ["mlorun", *args]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        # --info and hydra.verbose add handlers that log to the current standard output
        root.setLevel(level)
        root.handlers[:] = handlers
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error
