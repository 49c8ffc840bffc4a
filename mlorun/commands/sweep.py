"""Sweeps: a folder for each job, a failed job stops no other, and a table of the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, cast

from hydra.conf import HydraConf
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from mlorun.commands.summary import JOB, Job, jobs_in, show_summary
from mlorun.config.compose import explained
from mlorun.config.places import require_trust
from mlorun.config.resolve import resolve
from mlorun.errors import ConfigError, MlorunError
from mlorun.report import named, show
from mlorun.run.atomic import write_json
from mlorun.run.folder import require_name


class SweepRefused(BaseException):
    """A sweep that must not begin. Not an Exception: Hydra turns those of a callback into warnings, and goes on."""

    def __init__(self, error: ConfigError) -> None:
        super().__init__(str(error))
        self.error = error


class RememberFolder(Callback):
    """Keeps the folder of a sweep when it starts. Hydra makes one for every command, by config/primary/config.yaml."""

    folder: ClassVar[Path | None] = None
    made: ClassVar[tuple[Path, ...]] = ()  # the folder and those above it that were not there before
    jobs: ClassVar[tuple[Path, ...]] = ()  # the folders of the jobs so far

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job, and only for a sweep."""
        folder = Path(config.hydra.sweep.dir).absolute()
        try:
            if not OmegaConf.is_missing(config, "name"):
                require_name(str(config.name))  # a part of the folder
            _require_unused(folder)
        except ConfigError as error:
            raise SweepRefused(error) from None
        RememberFolder.folder = Path(config.hydra.sweep.dir)
        RememberFolder.made = tuple(path for path in (folder, *folder.parents) if not path.exists())


def _require_unused(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(
            "the folder of a sweep must be new or empty",
            where=f"hydra.sweep.dir: {folder}",
            seen="a folder with files in it" if folder.is_dir() else "a file",
            fix="name another one, or leave hydra.sweep.dir out",
        )


def as_typed(facts: HydraConf) -> list[str]:
    """The overrides of a job as text. A ${...} in them refers to the job's config: it is not resolved here."""
    texts = OmegaConf.to_container(cast(ListConfig, facts.overrides.task), resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def job(config: DictConfig, facts: HydraConf) -> None:
    """Run one job. An error is shown and recorded in its folder, and stops no other job; Ctrl-C stops the sweep."""
    folder = Path(facts.runtime.output_dir)
    overrides = as_typed(facts)
    RememberFolder.jobs = (*RememberFolder.jobs, folder)
    record: dict[str, Any] = {"number": int(facts.job.num), "overrides": overrides}
    write_json(folder / JOB, record)
    Console(highlight=False).print(f"[bold]job {record['number']}[/]  {' '.join(overrides)}", soft_wrap=True)
    try:
        from mlorun.training import train  # imports torch, which is slow

        require_trust(config.trusted_packages, overrides)
        resolve(config)
        result = train(config, overrides, folder)
    except Exception as error:
        cause = explained(error, overrides)
        fault = cause if isinstance(cause, MlorunError) else named(error, folder)
        show(fault)
        write_json(folder / JOB, {**record, "error": str(fault), "exit_code": fault.exit_code})
        return
    if isinstance(result.error, MlorunError):
        show(result.error)
        write_json(folder / JOB, {**record, "error": result.error.message})
    if result.status == "interrupted":
        raise KeyboardInterrupt


@contextmanager
def following() -> Iterator[Sweep]:
    """The sweep that Hydra runs inside, if it runs one."""
    RememberFolder.folder, RememberFolder.jobs = None, ()
    try:
        yield Sweep()
    finally:
        RememberFolder.folder = None


class Sweep:
    """The end of a command that may have been a sweep."""

    def finish(self, *, interrupted: bool = False) -> int:
        """Write sweep.json and print the summary; the exit code of the sweep."""
        folder = RememberFolder.folder
        jobs = jobs_in(folder)
        if folder is None or not jobs:
            self.discard()
            return 130 if interrupted else 0
        if all(job.exit_code == 2 for job in jobs) and not interrupted:
            # no job ran, and each has shown why: no files stay
            self.discard()
            return 2
        exit_code = _exit_code(jobs, interrupted)
        write_json(folder / "sweep.json", {"exit_code": exit_code, "jobs": [asdict(job) for job in jobs]})
        show_summary(jobs, folder)
        return exit_code

    def discard(self) -> None:
        """Remove the files of a sweep in which no job ran: those of Hydra and of mlorun, and no others."""
        folder = RememberFolder.folder
        if folder is None or not folder.is_dir() or any(folder.glob("*/run.json")):
            return
        for path in (*(job / JOB for job in RememberFolder.jobs), folder / "multirun.yaml"):
            path.unlink(missing_ok=True)
        for path in (*RememberFolder.jobs, *RememberFolder.made):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _exit_code(jobs: Sequence[Job], interrupted: bool) -> int:
    if interrupted or any(job.exit_code == 130 for job in jobs):
        return 130
    return 3 if any(job.exit_code for job in jobs) else 0
