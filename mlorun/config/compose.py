"""Overrides to a config, as `mlorun` on the command line composes it. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from mlorun.config import optimizer_defaults, schema, search_path
from mlorun.config.explain import explain, explaining, is_about_config
from mlorun.config.locations import PRIMARY_DIR
from mlorun.config.places import require_trust
from mlorun.config.recipes import make_recipes_importable
from mlorun.config.resolve import resolve
from mlorun.config.shorthand import PRIMARY, expand

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
    """The config that these overrides describe, resolved but not checked. Raises ConfigError."""
    with session(), explaining(overrides):
        config = hydra.compose(PRIMARY, overrides=expand(overrides))
        require_trust(config.trusted_packages, overrides)
        resolve(config)
    return config


def expanded(arguments: Sequence[str]) -> list[str]:
    """A command's arguments with the short forms written out, one for one."""
    with session(), explaining(arguments):
        return expand(arguments)


def explained(error: Exception, arguments: Sequence[str]) -> Exception:
    """A fault of a config as a ConfigError; an error of another kind as it is."""
    if not is_about_config(error):
        return error
    with session():
        return explain(error, arguments)


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
