"""A sweep: from what Hydra composed to jobs. Launchers and sweepers of others keep working, without our processes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.conf import HydraConf
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from mlorun.config.bounds import require_bounds
from mlorun.config.compose import session
from mlorun.config.schema import SweepConfig
from mlorun.config.shorthand import PRIMARY
from mlorun.config.wrong_choices import no_experiment
from mlorun.errors import ConfigError, MlorunError
from mlorun.report import show
from mlorun.run.folder import require_name
from mlorun.run.secrets import require_no_secret
from mlorun.sweeps.jobs import RECORD, Job, jobs_in
from mlorun.sweeps.ledger import FILE, Ledger, exit_code
from mlorun.sweeps.processes import share_of_cores
from mlorun.sweeps.resume import shared_hash
from mlorun.sweeps.run import run_jobs
from mlorun.sweeps.screen import Screen
from mlorun.sweeps.table import show_summary

_SUBDIR = "${hydra.job.num}"
_BASIC = tuple(f"{one.__module__}.{one.__qualname__}" for one in (BasicSweeper, BasicLauncher))


class SweepRefused(BaseException):
    """A sweep that must not begin. Not an Exception: Hydra turns those of a callback into warnings, and goes on."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(str(error))
        self.error = error


class SweepBegins(BaseException):
    """Hydra has composed what all jobs share, and mlorun takes over. Not an Exception: see SweepRefused."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__()
        self.config = config


class TakeOver(Callback):
    """Called by Hydra, by config/primary/config.yaml. A launcher or a sweeper of somebody else is left to itself."""

    folder: ClassVar[Path | None] = None  # of a sweep that Hydra runs
    made: ClassVar[tuple[Path, ...]] = ()  # the folder and those above it that were not there before
    jobs: ClassVar[tuple[Path, ...]] = ()  # the folders of the jobs so far

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called before the first job, and only for a sweep."""
        if OmegaConf.is_missing(config, "name") and "${name}" in str(_plain(config.hydra.sweep)["dir"]):
            raise SweepRefused(no_experiment())
        folder = Path(config.hydra.sweep.dir).absolute()
        try:
            if not OmegaConf.is_missing(config, "name"):
                require_name(str(config.name))  # a part of the folder
            require_no_secret(folder, "hydra.sweep.dir")
            _require_unused(folder)
            _require_numbers(config)
            require_bounds(config.sweep, SweepConfig, "sweep")
        except ConfigError as error:
            raise SweepRefused(error) from None
        TakeOver.folder = Path(config.hydra.sweep.dir)
        TakeOver.made = tuple(path for path in (folder, *folder.parents) if not path.exists())
        if (config.hydra.sweeper._target_, config.hydra.launcher._target_) == _BASIC:
            raise SweepBegins(config)


def _require_unused(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            "the folder of a sweep must be new or empty",
            where=f"hydra.sweep.dir: {folder}",
            seen="a folder with files in it" if folder.is_dir() else "a file",
            fix="name another one, or leave hydra.sweep.dir out",
        )


def _require_numbers(config: DictConfig) -> None:
    subdir = _plain(config.hydra.sweep)["subdir"]
    if subdir != _SUBDIR:
        raise ConfigError(
            "the folder of a job is its number",
            where="hydra.sweep.subdir",
            seen=str(subdir),
            fix="leave it out; sweep.json and the table say what each job is",
        )


def _plain(node: DictConfig) -> dict[str, Any]:
    """A node with its interpolations as they are written."""
    plain = OmegaConf.to_container(node, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def as_typed(facts: HydraConf) -> list[str]:
    """The overrides of a job as text. A ${...} in them refers to the job's config: it is not resolved here."""
    texts = OmegaConf.to_container(cast(ListConfig, facts.overrides.task), resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def run_sweep(config: DictConfig) -> int:
    """Run the jobs that a composed sweep describes, each in a process of its own; the exit code."""
    folder = Path(config.hydra.sweep.dir)
    typed = as_typed(config.hydra)
    jobs = [Job(number, overrides) for number, overrides in enumerate(_expanded(config, typed))]
    ledger = Ledger(
        folder=folder,
        name=folder.parent.name,
        overrides=tuple(typed),
        at_a_time=config.sweep.jobs,
        threads=share_of_cores(config.sweep.jobs),
        fail_fast=config.sweep.fail_fast,
        config=shared_hash(config),
        jobs=jobs,
    )
    hydra = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    assert isinstance(hydra, list)
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    code = run_jobs(ledger, jobs, Screen(ledger), list(map(str, hydra)), typed)
    if all(job.status == "refused" for job in ledger.jobs):
        discard(folder, [ledger.place(job) for job in jobs], TakeOver.made)
        return 2
    show_summary(ledger.jobs, folder, time.monotonic() - began)
    return code


def _expanded(config: DictConfig, typed: Sequence[str]) -> list[tuple[str, ...]]:
    """The overrides of every job, in Hydra's order. What is about the sweep itself is no job's."""
    params = OmegaConf.to_container(config.hydra.sweeper.params or OmegaConf.create({}), resolve=False)
    assert isinstance(params, dict)
    words = [*(f"{key!s}={value!s}" for key, value in params.items()), *typed]
    parsed = OverridesParser.create().parse_overrides(words)
    swept = [one for one in parsed if not one.get_key_element().lstrip("+~").startswith("sweep.")]
    if any(one.is_sweep_override() for one in parsed if one not in swept):
        raise ConfigError("how a sweep runs is one thing for all its jobs", where="sweep", seen=" ".join(words))
    (jobs,) = BasicSweeper.split_arguments(swept, None) or ([],)
    if not jobs:
        seen = " ".join(str(one.input_line) for one in swept if one.is_sweep_override())
        raise ConfigError("a sweep over nothing", where=seen, fix="a range ends before its last number: range(0,3)")
    _require_composable(jobs[0], swept, config)
    return [tuple(overrides) for overrides in jobs]


def _require_composable(first: Sequence[str], swept: Sequence[Override], config: DictConfig) -> None:
    """Raise Hydra's error for a fault that can be seen before a job runs: in the first job, which has every key that is
    swept, and in the name of any option that is. The others are composed when their turn comes."""
    own = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)
    assert isinstance(own, list)
    with session():
        loader = GlobalHydra.instance().config_loader()
        variants = [list(first)]
        for place, one in enumerate(swept):
            options = loader.get_group_options(one.key_or_group)
            if one.is_sweep_override() and options:
                wrong = [text for text in one.sweep_string_iterator() if text not in (*options, "null")]
                variants += [[*first[:place], f"{one.get_key_element()}={text}", *first[place + 1 :]] for text in wrong]
        for words in variants:
            loader.load_configuration(PRIMARY, [*map(str, own), *words], run_mode=RunMode.MULTIRUN)


def job(config: DictConfig, facts: HydraConf) -> None:
    """Run one job for a launcher of others. An error is shown and recorded, and stops no other; Ctrl-C stops all."""
    from mlorun.run.signals import INTERRUPTED
    from mlorun.sweeps.worker import run_job  # imports torch, which is slow

    folder = Path(facts.runtime.output_dir)
    one = Job(int(facts.job.num), tuple(as_typed(facts)))
    TakeOver.jobs = (*TakeOver.jobs, folder)
    print(f"job {one.number}  {' '.join(one.overrides)}")
    end = run_job(one, folder, lambda: config, one.overrides)
    if isinstance(end, MlorunError):
        show(end)
    elif end == INTERRUPTED:
        raise KeyboardInterrupt


@contextmanager
def following() -> Iterator[HydraSweep]:
    """The sweep that Hydra runs inside, if it runs one."""
    TakeOver.folder, TakeOver.jobs = None, ()
    try:
        yield HydraSweep()
    finally:
        TakeOver.folder = None


class HydraSweep:
    """The end of a command that may have been a sweep by a launcher of Hydra's."""

    def finish(self, *, interrupted: bool = False) -> int:
        """Write sweep.json and print the summary; the exit code of the sweep."""
        folder = TakeOver.folder
        jobs = jobs_in(folder)
        if folder is None or not jobs:
            self.discard()
            return 130 if interrupted else 0
        if all(job.exit_code == 2 for job in jobs) and not interrupted:
            # no job ran, and each has shown why: no files stay
            self.discard()
            return 2
        ledger = Ledger(folder, folder.parent.name, (), jobs=jobs, exit_code=130 if interrupted else exit_code(jobs))
        ledger.write()
        show_summary(jobs, folder)
        return ledger.exit_code or 0

    def discard(self) -> None:
        """Remove the files of a sweep in which no job ran."""
        if TakeOver.folder is not None:
            discard(TakeOver.folder, TakeOver.jobs, TakeOver.made)


def discard(folder: Path, jobs: Sequence[Path], made: Sequence[Path]) -> None:
    """Remove what a sweep made in which no job ran: the files of Hydra and of mlorun, and no others.

    made   the folder and those above it that were not there before
    """
    if not folder.is_dir() or any(folder.glob("*/run.json")):
        return
    own = [folder / name for name in ("multirun.yaml", FILE, ".lock")]
    for path in (*(job / name for job in jobs for name in (RECORD, "output.txt")), *own):
        path.unlink(missing_ok=True)
    for path in (*jobs, *made):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
