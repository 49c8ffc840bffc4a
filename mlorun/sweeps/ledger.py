"""sweep.json: every job of a sweep and its state, those that never ran among them. No torch, no Hydra."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlorun.errors import ConfigError
from mlorun.run.atomic import write_json
from mlorun.sweeps.jobs import UNFINISHED, Job

FILE = "sweep.json"


@dataclass
class Ledger:
    """The jobs of the sweep in `folder`; `write` puts them into its sweep.json.

    overrides    what the sweep was started with
    at_a_time    jobs that run beside each other
    threads      of each job; None: as many as torch likes
    fail_fast    the first job that fails ends the sweep
    config       a hash of what Hydra composed for all jobs together
    """

    folder: Path
    name: str
    overrides: tuple[str, ...]
    at_a_time: int = 1
    threads: int | None = None
    fail_fast: bool = False
    config: str = ""
    jobs: list[Job] = field(default_factory=list)
    exit_code: int | None = None
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """The sweep in `folder`, each job as its own folder has it. Raises ConfigError."""
        path = folder / FILE
        try:
            fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            jobs = [Job.from_json(one) for one in fields["jobs"]]
            ledger = cls(
                folder=folder,
                name=str(fields["name"]),
                overrides=tuple(map(str, fields["overrides"])),
                at_a_time=int(fields["at_a_time"]),
                threads=None if fields["threads"] is None else int(fields["threads"]),
                fail_fast=bool(fields["fail_fast"]),
                config=str(fields["config"]),
                exit_code=fields["exit_code"],
                started=str(fields["started"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                "the record of the sweep cannot be read", where=str(path), seen=f"{type(error).__name__}: {error}"
            ) from error
        ledger.jobs = [job.seen_in(ledger.place(job)) for job in jobs]
        return ledger

    def place(self, job: Job) -> Path:
        """The folder of a job."""
        return self.folder / str(job.number)

    def put(self, job: Job) -> None:
        """Take the new state of a job, and write."""
        self.jobs = [job if one.number == job.number else one for one in self.jobs]
        self.write()

    def look_again(self, number: int) -> Job:
        """The state of a job as its folder has it now."""
        job = next(one for one in self.jobs if one.number == number)
        return job.seen_in(self.place(job))

    def write(self) -> None:
        """Write sweep.json, whole or not at all."""
        write_json(
            self.folder / FILE,
            {
                "name": self.name,
                "overrides": self.overrides,
                "started": self.started,
                "exit_code": self.exit_code,
                "at_a_time": self.at_a_time,
                "threads": self.threads,
                "fail_fast": self.fail_fast,
                "config": self.config,
                "jobs": [job.as_json() for job in self.jobs],
            },
        )

    def to_do(self, *, failed: bool) -> list[Job]:
        """Jobs that are not done: those that never ran or were interrupted; with `failed`, the failed too."""
        return [job for job in self.jobs if job.status in UNFINISHED or (failed and job.status != "finished")]


def waiting_again(jobs: Iterable[Job]) -> list[Job]:
    """These jobs, without what an earlier attempt left in their states."""
    return [replace(job, status="waiting", exit_code=None, error=None) for job in jobs]


def exit_code(jobs: Sequence[Job]) -> int:
    """Of a sweep that nobody interrupted: 0, or 3 where a job did not finish."""
    return 3 if any(job.status != "finished" for job in jobs) else 0
