"""Sweeps: a folder for each job, failures that stop nobody, and a table of what came out."""

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
from mlorun.config.resolve import resolve
from mlorun.errors import MlorunError
from mlorun.report import named, show
from mlorun.run.atomic import write_json


class RememberFolder(Callback):
    """Notes where a sweep goes when it starts. configs/config.yaml has Hydra make one for every command."""

    folder: ClassVar[Path | None] = None
    made: ClassVar[tuple[Path, ...]] = ()  # the folder and those above it that were not there before

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Called by Hydra before the first job, and only for a sweep."""
        folder = Path(config.hydra.sweep.dir).absolute()
        RememberFolder.folder = Path(config.hydra.sweep.dir)
        RememberFolder.made = tuple(path for path in (folder, *folder.parents) if not path.exists())


def as_typed(facts: HydraConf) -> list[str]:
    """The overrides of a job. A ${...} in them refers to the config, and not to Hydra's record of the command."""
    texts = OmegaConf.to_container(cast(ListConfig, facts.overrides.task), resolve=False)
    assert isinstance(texts, list)
    return [str(text) for text in texts]


def job(config: DictConfig, facts: HydraConf) -> None:
    """One job. What goes wrong is told, recorded in its folder, and stops nobody else; only Ctrl-C does."""
    folder = Path(facts.runtime.output_dir)
    overrides = as_typed(facts)
    asked: dict[str, Any] = {"number": int(facts.job.num), "overrides": overrides}
    write_json(folder / JOB, asked)
    Console(highlight=False).print(f"[bold]job {asked['number']}[/]  {' '.join(overrides)}", soft_wrap=True)
    try:
        from mlorun.training import train  # torch, which the process of the sweep may never need

        resolve(config)
        result = train(config, overrides, folder)
    except Exception as error:
        said = explained(error, overrides)
        fault = said if isinstance(said, MlorunError) else named(error, folder)
        show(fault)
        write_json(folder / JOB, {**asked, "error": str(fault), "exit_code": fault.exit_code})
        return
    if isinstance(result.error, MlorunError):
        show(result.error)
        write_json(folder / JOB, {**asked, "error": result.error.message})
    if result.status == "interrupted":
        raise KeyboardInterrupt


@contextmanager
def following() -> Iterator[Sweep]:
    """Learn whether what happens inside is a sweep, and where it goes."""
    RememberFolder.folder = None
    try:
        yield Sweep()
    finally:
        RememberFolder.folder = None


class Sweep:
    """The sweep that Hydra is running, if it is one."""

    def finish(self, *, interrupted: bool = False) -> int:
        """Write sweep.json and print the summary; the exit code of the sweep."""
        folder = RememberFolder.folder
        jobs = jobs_in(folder)
        if folder is None or not jobs:
            self.discard()
            return 130 if interrupted else 0
        if all(found.exit_code == 2 for found in jobs) and not interrupted:
            # nothing was run, so nothing is left; every job has said why
            self.discard()
            return 2
        exit_code = _exit_code(jobs, interrupted)
        write_json(folder / "sweep.json", {"exit_code": exit_code, "jobs": [asdict(found) for found in jobs]})
        show_summary(jobs, folder)
        return exit_code

    def discard(self) -> None:
        """Remove what Hydra and the jobs left of a sweep in which nothing was run. Touches nothing else."""
        folder = RememberFolder.folder
        if folder is None or not folder.is_dir() or any(folder.glob("*/run.json")):
            return
        for path in (*folder.glob(f"*/{JOB}"), folder / "multirun.yaml"):
            path.unlink(missing_ok=True)
        for path in (*folder.iterdir(), *RememberFolder.made):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _exit_code(jobs: Sequence[Job], interrupted: bool) -> int:
    if interrupted or any(found.exit_code == 130 for found in jobs):
        return 130
    return 3 if any(found.exit_code for found in jobs) else 0
