"""A run folder to a run that can go on: its saved config, what may be changed in it, its newest good checkpoint."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from mlorun.callbacks.checkpoints import Checkpoints, require_ours
from mlorun.config.file_checks import require_bounded
from mlorun.config.places import require_trust
from mlorun.config.schema import Config
from mlorun.core.engine import Engine
from mlorun.errors import ConfigError, DataError, RunError, did_you_mean, faults_in
from mlorun.run import checkpoint
from mlorun.run.checkpoint import CheckpointError
from mlorun.run.folder import RunFolder

log = logging.getLogger("mlorun.run")
_ABSENT = object()

# what cannot change a step that has been taken
CHANGEABLE = (
    "engine.train_iters",
    "engine.log_every",
    "engine.valid_every",
    "checkpoint",
    "nonfinite",
    "logger",
    "run",
)


@dataclass(frozen=True)
class Restart:
    """What `mlorun resume` goes on with.

    config      the saved one, changed by `overrides`
    overrides   those of the run, and now these
    """

    folder: RunFolder
    config: DictConfig
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, folder: RunFolder, overrides: Sequence[str] = ()) -> Restart:
        """Raises ConfigError for a folder whose config cannot be read, and for what cannot be changed any more."""
        config = saved_config(folder)
        trust = [text for text in overrides if text.lstrip("+").startswith("trusted_packages=")]
        require_trust(config.trusted_packages, trust)
        overrides = [text for text in overrides if text not in trust]
        parsed = [_parsed(text) for text in overrides]
        keys = [_key(override, config.problems) for override in parsed]
        refused = [(override, key) for override, key in zip(parsed, keys, strict=True) if not _is_changeable(key)]
        if refused:
            differences = "; ".join(
                f"{key}={_saved(config, key)}, wanted {override.value()}" for override, key in refused
            )
            raise ConfigError(
                "a run goes on with the config that it was started with",
                where=", ".join(key for _, key in refused),
                seen=differences,
                fix=f"leave it out; or start a new run from its weights: mlorun ... init_from={folder.path}. May be "
                f"changed: {', '.join(CHANGEABLE)}",
            )
        _update(config, parsed, keys)
        return cls(folder, config, (*folder.facts()["overrides"], *overrides))

    def load(self, engine: Engine, checkpoints: Checkpoints) -> int:
        """Put the newest good checkpoint into the engine and the callbacks; its step. The run's metrics.jsonl is cut
        to where it was then.

        A run that died before its first checkpoint starts again, and says so. Raises RunError where no checkpoint is
        good.
        """
        home = self.folder
        for path, content in checkpoint.good_ones(home.checkpoints):
            length = home.metrics.stat().st_size if home.metrics.exists() else 0
            require_ours(content, path)
            if length < content["metrics_bytes"]:
                log.warning("%s is shorter than %s says; an earlier checkpoint is used", home.metrics, path.name)
                continue
            with fitting(path):
                engine.load_state_dict(content["engine"])
                checkpoints.restore(content, engine.step_count)
            if engine.train_iters < engine.step_count:
                raise ConfigError(
                    "the run has done more steps than that",
                    where="engine.train_iters",
                    seen=f"{engine.train_iters}, and {engine.step_count} are done",
                )
            home.cut_metrics(content["metrics_bytes"])
            log.info("goes on from step %s: %s", f"{engine.step_count:,}", path.name)
            return engine.step_count
        if home.expects_checkpoints:
            raise CheckpointError(
                "no checkpoint of this run can be used",
                where=str(home.checkpoints),
                seen=f"{len(checkpoint.saved(home.checkpoints))} files, none of them whole",
                fix="start it again: mlorun " + " ".join(self.overrides),
            )
        home.cut_metrics(0)
        log.info("the run ended before its first checkpoint: it starts from step 0")
        return 0


@contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Raise RunError where the content of this checkpoint does not fit what it is put into."""
    try:
        yield
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise RunError(
            "the checkpoint does not fit the program that the config describes",
            where=str(path),
            seen=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            fix="the recipe or its data have changed; start a new run",
        ) from error


@contextmanager
def began_elsewhere(folder: RunFolder) -> Iterator[None]:
    """Name the folder in which a run began where something is wrong that is looked for in the working folder: a recipe,
    or data."""
    try:
        yield
    except ConfigError as error:
        here = os.getcwd()
        began = folder.facts().get("cwd", here)
        for fault in faults_in(error) if began != here else ():
            if isinstance(fault, DataError) or (fault.where or "").endswith("._target_"):
                there = f"the run began in {began}: start this command there"
                fault.fix = f"{there}; or: {fault.fix}" if fault.fix else there
        raise


def saved_config(folder: RunFolder) -> DictConfig:
    """config.yaml of a run, with the types of the schema. Raises ConfigError."""
    try:
        require_bounded(folder.config)
        loaded = OmegaConf.load(folder.config)
        schema = OmegaConf.structured(Config)
        OmegaConf.set_struct(schema, False)
        config = OmegaConf.merge(schema, loaded)
    except FileNotFoundError as error:
        raise ConfigError("the run folder has no config", where=str(folder.config)) from error
    except (OmegaConfBaseException, YAMLError, OSError, ValueError, RecursionError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise ConfigError("the saved config cannot be read", where=str(folder.config), seen=first) from error
    assert isinstance(config, DictConfig)
    return config


def changed(config: DictConfig, overrides: Sequence[str], *, command: str) -> DictConfig:
    """A saved config with these values in it. Raises ConfigError for a key that it does not have.

    command   for errors
    """
    trust = [text for text in overrides if text.lstrip("+").startswith("trusted_packages=")]
    require_trust(config.trusted_packages, trust)
    parsed = [_parsed(text, command) for text in overrides if text not in trust]
    keys = [_key(override, config.problems) for override in parsed]
    for override, key in zip(parsed, keys, strict=True):
        if OmegaConf.select(config, key, default=_ABSENT) is _ABSENT and not override.is_add():
            near = did_you_mean(key.rpartition(".")[2], _keys_beside(config, key))
            raise ConfigError(f"there is no key {key} in the config of that run", where=override.input_line, fix=near)
    _update(config, parsed, keys)
    return config


def _keys_beside(config: DictConfig, key: str) -> list[str]:
    above = OmegaConf.select(config, key.rpartition(".")[0]) if "." in key else config
    return [str(name) for name in above] if isinstance(above, DictConfig) else []


def _update(config: DictConfig, parsed: Sequence[Override], keys: Sequence[str]) -> None:
    for override, key in zip(parsed, keys, strict=True):
        try:
            OmegaConf.update(config, key, override.value(), merge=True, force_add=override.is_add())
        except (OmegaConfBaseException, ValueError) as error:
            raise ConfigError(
                str(error).splitlines()[0], where=key, seen=override.input_line or "", fix="see mlorun show"
            ) from error


def _parsed(text: str, command: str = "mlorun resume") -> Override:
    parsed = OverridesParser.create().parse_override(text)
    if parsed.is_delete() or parsed.is_sweep_override():
        raise ConfigError(f"{command} takes values, one for a key", where=command, seen=text)
    return parsed


def _key(override: Override, problems: Mapping[str, Any]) -> str:
    """Its path in the config; classifier.optimizer.lr is problems.classifier.optimizer.lr."""
    key = str(override.key_or_group).replace("/", ".")
    return f"problems.{key}" if key.partition(".")[0] in problems else key


def _saved(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def _is_changeable(key: str) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in CHANGEABLE)
