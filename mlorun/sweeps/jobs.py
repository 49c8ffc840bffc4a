"""One job of a sweep: what it is to run, and how far it has come, as its folder says. No torch, no Hydra."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mlorun.run.atomic import write_json
from mlorun.run.folder import RunFolder
from mlorun.run.lock import is_locked
from mlorun.run.record import read_result

RECORD = "job.json"  # in the folder of a job: its number, its overrides, and the error that ended it

# a job that somebody ended, or that never began: `mlorun resume SWEEP` takes it up without being asked
UNFINISHED = ("waiting", "running", "interrupted", "preempted", "died")


@dataclass(frozen=True)
class Job:
    """One job.

    status      waiting, running, refused (its config is wrong), died (its process ended without a word), or the
                status of its run
    exit_code   None while there is none
    error       the screen of the error that ended it, or None
    evaluated   which of its metrics are of evaluations
    """

    number: int
    overrides: tuple[str, ...]
    status: str = "waiting"
    exit_code: int | None = None
    steps: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    evaluated: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """What the job is known by: a hash of its overrides."""
        return hashlib.sha256("\n".join(self.overrides).encode(errors="backslashreplace")).hexdigest()[:12]

    @property
    def values(self) -> dict[str, str]:
        """The overrides as a mapping."""
        pairs = (text.lstrip("+").partition("=") for text in self.overrides)
        return {_short_form(key): value for key, _, value in pairs}

    @property
    def numbers(self) -> dict[str, float]:
        """The metrics as numbers; in a result.json, NaN and infinity are words. NaN for null."""
        return {name: float("nan") if value is None else float(value) for name, value in self.metrics.items()}

    def as_json(self) -> dict[str, Any]:
        """The fields of sweep.json."""
        return {"number": self.number, "id": self.id, **asdict(self)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Job:
        """As `as_json` wrote it. Raises KeyError, TypeError and ValueError for anything else."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name != "evaluated"}
        texts = {"overrides": known["overrides"], "evaluated": fields.get("evaluated", ())}
        # the number is the folder's name: of a stranger's record it may lead nowhere else
        known["number"] = int(known["number"])
        return cls(**{**known, **{name: tuple(map(str, value)) for name, value in texts.items()}})

    def seen_in(self, folder: Path) -> Job:
        """The job as the files in its folder have it; as it is, where they say nothing."""
        home = RunFolder(folder)
        record = _read(folder / RECORD)
        error = record.get("error", self.error)
        if not home.run.exists():
            if isinstance(code := record.get("exit_code"), int):
                return replace(self, status="refused" if code == 2 else "failed", exit_code=code, error=error)
            return replace(self, status="died") if self.status == "running" and not is_locked(folder) else self
        result = read_result(home.result)
        if result is None:
            return replace(self, status="running" if is_locked(folder) else "died", exit_code=None, error=error)
        return replace(
            self,
            status=result["status"],
            exit_code=result["exit_code"],
            steps=result["steps"],
            metrics=result["metrics"],
            error=error,
            evaluated=tuple(result.get("evaluated", ())),
        )


def write_record(folder: Path, job: Job, **fields: Any) -> None:
    """Write what the folder of a job says about it, beside the files of its run."""
    write_json(folder / RECORD, {"number": job.number, "id": job.id, "overrides": job.overrides, **fields})


def jobs_in(folder: Path | None) -> list[Job]:
    """The jobs that have a folder in the folder of a sweep, in order."""
    files = folder.glob(f"*/{RECORD}") if folder is not None else ()
    jobs = []
    for file in files:
        record = _read(file)
        jobs.append(Job(int(record["number"]), tuple(record["overrides"])).seen_in(file.parent))
    return sorted(jobs, key=lambda job: job.number)


def _short_form(key: str) -> str:
    """classifier.module for module@problems.classifier.module, classifier.problem for problem@problems.classifier."""
    group, _, package = key.rpartition("@")
    short = package.removeprefix("problems.")
    return f"{short}.problem" if group == "problem" else short


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no file, or half of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
