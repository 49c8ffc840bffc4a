"""Overrides to a config, as `mlorun` on the command line composes it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mlorun.config import optimizer_defaults, schema, search_path
from mlorun.config.explain import explain, explaining, is_about_config
from mlorun.config.locations import PRIMARY_DIR, groups
from mlorun.config.misread import misread
from mlorun.config.places import require_trust
from mlorun.config.recipes import make_recipes_importable
from mlorun.config.resolve import resolve
from mlorun.config.schema import PLACED_GROUPS
from mlorun.config.shorthand import PRIMARY, expand
from mlorun.errors import ConfigError, faults_in, together

VERSION_BASE = "1.3"


def compose(overrides: Sequence[str] = ()) -> DictConfig:
    """The config that these overrides describe, resolved and checked. Raises ConfigError(s).

    `compose(["experiment=mwn_digits", "classifier.optimizer.lr=0.05"])`
    """
    from mlorun.config.check import check  # imports what the targets name, torch among it

    config = composed(overrides)
    check(config)
    return config


def composed(overrides: Sequence[str] = ()) -> DictConfig:
    """The config that these overrides describe, resolved but not checked. Raises ConfigError(s)."""
    config, faults = attempted(overrides)
    if faults or config is None:
        raise together(faults)
    return config


def attempted(overrides: Sequence[str]) -> tuple[DictConfig | None, list[ConfigError]]:
    """The resolved config of those overrides that are right, if it can be had, and the faults of the others."""
    with session():
        if faults := misread(overrides):
            return None, faults
        config: DictConfig | None = None
        try:
            config = hydra.compose(PRIMARY, overrides=expand(overrides))
        except Exception as error:
            if not is_about_config(error):
                raise
            config, faults = _without_faults(error, overrides)
        try:
            if config is not None:
                require_trust(config.trusted_packages, overrides)
                resolve(config)
        except ConfigError as error:
            return None, [*faults, *faults_in(error)]
    return config, faults


def _without_faults(error: Exception, overrides: Sequence[str]) -> tuple[DictConfig | None, list[ConfigError]]:
    """A config with as many of the overrides as can be composed, the choices first; and a fault for each other one."""
    only = explain(error, overrides)
    if not isinstance(only, ConfigError):
        raise only
    config: DictConfig | None = None
    kept: list[str] = []
    faults: dict[str, ConfigError] = {}
    for text in sorted(overrides, key=_turn):
        try:
            config = hydra.compose(PRIMARY, overrides=expand([*kept, text]))
            kept.append(text)
        except Exception as cause:
            _forget(cause, error)
            fault = explain(cause, [*kept, text]) if is_about_config(cause) else None
            if not isinstance(fault, ConfigError) or text.startswith("experiment="):
                return None, [only]
            faults[text] = fault
    # together they fail, and none of them alone
    return (config, [faults[text] for text in overrides if text in faults]) if faults else (None, [only])


def _forget(error: BaseException, earlier: BaseException) -> None:
    """Take an error that was being handled out of what a later one was raised after: it is no cause of it."""
    while error.__context__ is not None:
        if error.__context__ is earlier:
            error.__context__ = None
            return
        error = error.__context__


def _turn(override: str) -> int:
    """The experiment first, then whole problems, then other options, then values."""
    key = override.lstrip("+").partition("=")[0]
    if key == "experiment":
        return 0
    if key.endswith(".problem") or key.startswith("problem@"):
        return 1
    return 2 if key.partition("@")[0] in groups() or key.rpartition(".")[2] in PLACED_GROUPS else 3


def expanded(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with the short forms written out, one for one. Raises ConfigError(s) for a word that Hydra
    would misread."""
    with session(), explaining(arguments):
        if faults := misread(arguments):
            raise together(faults)
        return expand(arguments)


def explained(error: Exception, arguments: Sequence[str]) -> Exception:
    """A fault of a config as a ConfigError, with those of the other arguments; an error of another kind as it is."""
    if not is_about_config(error):
        return error
    with session():
        if any(text.startswith("-") for text in arguments):  # a sweep, or a flag of Hydra
            return explain(error, arguments)
        return together(_without_faults(error, arguments)[1])


@contextmanager
def session() -> Iterator[None]:
    """Hydra with our search path; an earlier initialization is restored at the end."""
    prepare()
    # in a job of a sweep, or in a notebook, Hydra is initialized already
    kept = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(PRIMARY_DIR), job_name="mlorun", version_base=VERSION_BASE):
            yield
    finally:
        GlobalHydra.instance().hydra = kept


def prepare() -> None:
    """Register what Hydra and OmegaConf need before they start; more than once does no harm."""
    assert schema.NAME and optimizer_defaults.RESOLVER  # importing the two modules has registered them
    search_path.register()
    make_recipes_importable()
