"""Overrides to a config, as `mlorun` on the command line composes it. No torch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mlorun.config import optimizer_defaults, schema, search_path
from mlorun.config.explain import explain, explaining, is_about_config
from mlorun.config.locations import PRIMARY_DIR
from mlorun.config.misread import misread
from mlorun.config.places import require_trust
from mlorun.config.recipes import make_recipes_importable
from mlorun.config.resolve import resolve
from mlorun.config.shorthand import PRIMARY, expand
from mlorun.errors import ConfigError, faults_in, together

VERSION_BASE = "1.3"


def compose(overrides: str | Sequence[str] = ()) -> DictConfig:
    """The config that these overrides describe, resolved and checked. Raises ConfigError(s).

    `compose(["experiment=mwn_digits", "classifier.optimizer.lr=0.05"])`, or the same as one text, with the quotes of a
    shell: `compose("experiment=mwn_digits classifier.optimizer.lr=0.05")`
    """
    from mlorun.config.check import check  # imports what the targets name, torch among it

    config = composed(shlex.split(overrides) if isinstance(overrides, str) else overrides)
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
        except Exception as error:
            if not is_about_config(error):
                raise
            raise explain(error, overrides) from error
    return config, faults


def _without_faults(error: Exception, overrides: Sequence[str]) -> tuple[DictConfig | None, list[ConfigError]]:
    """A config without the overrides that cannot be composed, and a fault for each of those.

    Where the place of a fault is no single override, or the experiment is wrong, nothing further can be told.
    """
    kept = list(overrides)
    faults: dict[str, ConfigError] = {}
    cause = error
    while True:
        fault = explain(cause, kept)
        if not isinstance(fault, ConfigError):
            raise fault
        culprit = fault.where or ""
        if culprit not in kept or culprit.startswith("experiment="):
            return None, [*faults.values(), fault]
        faults[culprit] = fault
        kept.remove(culprit)
        try:
            return hydra.compose(PRIMARY, overrides=expand(kept)), [
                faults[text] for text in overrides if text in faults
            ]
        except Exception as further:
            if not is_about_config(further):
                raise
            _forget(further, error)
            cause = further


def _forget(error: BaseException, earlier: BaseException) -> None:
    """Take an error that was being handled out of what a later one was raised after: it is no cause of it."""
    while error.__context__ is not None:
        if error.__context__ is earlier:
            error.__context__ = None
            return
        error = error.__context__


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
