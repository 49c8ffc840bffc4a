"""Going on with a sweep: the jobs that are not done, and what may be said anew. No torch before the first job."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from time import sleep

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mlorun.config.bounds import require_bounds
from mlorun.config.compose import session
from mlorun.config.schema import SweepConfig
from mlorun.config.shorthand import PRIMARY
from mlorun.errors import ConfigError
from mlorun.run.lock import in_use, is_locked
from mlorun.sweeps.ledger import Ledger, exit_code
from mlorun.sweeps.processes import share_of_cores
from mlorun.sweeps.run import run_jobs
from mlorun.sweeps.screen import Screen
from mlorun.sweeps.table import show_summary

PATIENCE = 60.0  # seconds, with jobs that outlived their sweep
# what may be said when a sweep is resumed
OF_A_SWEEP = ("sweep.", "trusted_packages=", "hydra.", "hydra/")


def resume_sweep(folder: Path, overrides: Sequence[str], *, failed: bool) -> int:
    """Go on with the jobs of a sweep that are not done; with `failed`, with those that failed too. The exit code.

    overrides   may change sweep.jobs and sweep.fail_fast, set Hydra itself, and trust packages again: the record of a
                sweep does not. Raises ConfigError for any other
    """
    if is_locked(folder):
        raise in_use(folder)
    _wait_for_jobs(Ledger.read(folder))
    ledger = Ledger.read(folder)
    others = [text for text in overrides if not text.lstrip("+").startswith(OF_A_SWEEP)]
    if others:
        raise ConfigError(
            "a sweep goes on with the overrides that it was started with",
            where=" ".join(others),
            seen=" ".join(ledger.overrides),
            fix="sweep.jobs, sweep.fail_fast and trusted_packages may be given; start a new sweep for anything else",
        )
    hydra = [text for text in overrides if text.lstrip("+").startswith("hydra")]
    settings = _settings([text for text in overrides if text.lstrip("+").startswith("sweep.")], ledger)
    jobs = ledger.to_do(failed=failed)
    if not jobs:
        show_summary(ledger.jobs, folder)
        return exit_code(ledger.jobs)
    if settings.jobs != ledger.at_a_time:
        ledger.at_a_time, ledger.threads = settings.jobs, share_of_cores(settings.jobs)
    ledger.fail_fast = settings.fail_fast
    if any(job.status == "waiting" for job in jobs):
        _warn_of_changes(ledger, hydra)
    began = time.monotonic()
    trust = [text for text in overrides if text.lstrip("+").startswith("trusted_packages=")]
    code = run_jobs(ledger, jobs, Screen(ledger), hydra, trust)
    show_summary(ledger.jobs, folder, time.monotonic() - began)
    return code


def _wait_for_jobs(ledger: Ledger) -> None:
    """Until jobs have ended that outlived the process of their sweep: they finish a step and save. Raises
    FolderInUseError for one that does not end."""
    until = time.monotonic() + PATIENCE
    left = [job.number for job in ledger.jobs]
    said = False
    while left := [number for number in left if is_locked(ledger.folder / str(number))]:
        if time.monotonic() > until:
            raise in_use(ledger.folder / str(left[0]))
        if not said:
            print(f"waiting for job {', '.join(map(str, left))}, which has outlived its sweep, to save and end")
            said = True
        sleep(0.1)


def _settings(words: Sequence[str], ledger: Ledger) -> SweepConfig:
    """sweep.* of the ledger, changed by these overrides. Raises ConfigError."""
    node = OmegaConf.structured(SweepConfig(ledger.at_a_time, ledger.fail_fast))
    try:
        for one in OverridesParser.create().parse_overrides(list(words)):
            OmegaConf.update(node, one.get_key_element().lstrip("+").removeprefix("sweep."), one.value())
    except (HydraException, OmegaConfBaseException) as error:
        fix = "sweep.jobs=NUMBER, sweep.fail_fast=true or false"
        raise ConfigError(str(error).splitlines()[0], where=" ".join(words), fix=fix) from error
    require_bounds(node, SweepConfig, "sweep")
    settings = OmegaConf.to_object(node)
    assert isinstance(settings, SweepConfig)
    return settings


def _warn_of_changes(ledger: Ledger, hydra: Sequence[str]) -> None:
    """Say it where jobs that never ran will be composed of other files than those before them."""
    with session():
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create().parse_overrides(list(ledger.overrides))
        words = [*hydra, *(one.input_line or "" for one in parsed if not one.is_sweep_override())]
        try:
            now = shared_hash(loader.load_configuration(PRIMARY, words, run_mode=RunMode.MULTIRUN))
        except HydraException:
            return  # each job will say what is wrong
    if ledger.config not in ("", now):
        print("warning: the config files have changed since this sweep began; jobs that start now are of the new ones")


def shared_hash(config: DictConfig) -> str:
    """A hash of what all jobs share: what the config files say, without the folder and the hour of the sweep."""
    shared = config.copy()
    with open_dict(shared):
        shared.pop("hydra", None)
        shared.pop("sweep", None)
    return hashlib.sha256(OmegaConf.to_yaml(shared, resolve=False).encode()).hexdigest()[:16]
