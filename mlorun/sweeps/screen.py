"""What a person sees of a sweep while it runs: which job, how each ended, how long the rest will take. No torch."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from mlorun.loggers.console import FAILED, STYLES, shown_path
from mlorun.loggers.numbers import listed
from mlorun.loggers.speed import say_time
from mlorun.report import show_rendered
from mlorun.sweeps.jobs import Job
from mlorun.sweeps.ledger import Ledger
from mlorun.sweeps.table import shown_metrics, swept_keys

_STYLES: Mapping[str, str] = {str(status): style for status, style in STYLES.items()}


@dataclass
class Screen:
    """Follows the jobs of a ledger."""

    ledger: Ledger
    _console: Console = field(default_factory=lambda: Console(highlight=False))
    _seconds: list[float] = field(default_factory=list)  # of the jobs that this process has seen to their end
    _errors: dict[str, int] = field(default_factory=dict)  # the first job with each error
    _places: dict[int, int] = field(default_factory=dict)  # of the jobs, in the order in which they started
    _to_do: int = 0

    def begin(self, to_do: int) -> None:
        """Say how many jobs there are, and where."""
        ledger = self.ledger
        self._to_do = to_do
        count = len(ledger.jobs)
        done = f", {to_do} of them to do" if to_do < count else ""
        beside = f", {ledger.at_a_time} at a time" if ledger.at_a_time > 1 else ""
        threads = f", {ledger.threads} thread{'s' if ledger.threads > 1 else ''} each" if ledger.threads else ""
        self._say(f"{_jobs(count)}{done}{beside}{threads}: {shown_path(ledger.folder)}", "bold")

    def started(self, job: Job) -> None:
        """Name the job, and say how long the rest will take."""
        left = f"  ({self._time_left()})" if self._seconds else ""
        self._say(f"{self._place(job)}  {self._what(job)}{left}", "bold" if self.ledger.at_a_time == 1 else "")

    def ended(self, job: Job, seconds: float) -> None:
        """Say how a job ended; the same error is shown in full once."""
        self._seconds.append(seconds)
        first = job.number
        if job.error is not None:
            fault = job.error.partition("\n  fix ")[0]  # which may name a file of this job
            first = self._errors.setdefault(fault, job.number)
            if first == job.number:
                show_rendered(job.error)
        if self.ledger.at_a_time > 1 or job.status not in ("finished", "interrupted", "preempted"):
            names = shown_metrics([job])
            numbers = listed({name: job.numbers[name] for name in names})
            again = "" if first == job.number else f"the same error as job {first}"
            text = f"{self._place(job)} {job.status} in {_time(seconds)}  {numbers or again}".rstrip()
            self._say(text, _STYLES.get(job.status, FAILED))

    def stopping(self, signal: str) -> None:
        """Say that the jobs were asked to end."""
        self._say(f"{signal}: the jobs that run finish their step and save; no other is started", "bold magenta")

    def _place(self, job: Job) -> str:
        """[3/18] job 2"""
        place = self._places.setdefault(job.number, len(self._places) + 1)
        return f"[{place}/{self._to_do}] job {job.number}"

    def _what(self, job: Job) -> str:
        swept = swept_keys(self.ledger.jobs)
        if not swept:
            return " ".join(job.overrides)
        return " ".join(f"{key}={value}" for key, value in job.values.items() if key in swept)

    def _time_left(self) -> str:
        left = self._to_do - len(self._seconds)
        mean = sum(self._seconds) / len(self._seconds)
        return f"about {say_time(mean * left / self.ledger.at_a_time)} for what is left"

    def _say(self, text: str, style: str) -> None:
        sys.stderr.flush()
        self._console.print(Text(text, style), soft_wrap=True)
        self._console.file.flush()  # before the job's own process writes


def _jobs(count: int) -> str:
    return f"{count:,} job{'' if count == 1 else 's'}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else say_time(seconds)
