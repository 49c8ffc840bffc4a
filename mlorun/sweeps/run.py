"""The jobs of a sweep, some at a time, until none is left or somebody ends it. No torch."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from mlorun.run.lock import locked
from mlorun.run.signals import ENDING, Received, Terminated, watching
from mlorun.sweeps import processes
from mlorun.sweeps.jobs import Job
from mlorun.sweeps.ledger import Ledger, exit_code, waiting_again
from mlorun.sweeps.processes import Order, Running

PATIENCE = 20.0  # seconds that jobs have after a second signal


class Follower(Protocol):
    """Hears of the jobs."""

    def begin(self, to_do: int) -> None:
        """Called once, with the number of jobs to run."""

    def started(self, job: Job) -> None:
        """Called when a job starts."""

    def ended(self, job: Job, seconds: float) -> None:
        """Called when a job has ended."""

    def stopping(self, signal: str) -> None:
        """Called when the jobs were asked to end."""


def run_jobs(
    ledger: Ledger, to_do: Sequence[Job], follower: Follower, hydra: Sequence[str] = (), typed: Sequence[str] = ()
) -> int:
    """Run these jobs of the ledger, and keep its sweep.json true meanwhile; the exit code of the sweep.

    hydra   overrides of Hydra itself, for every job
    typed   words of the command line, which may trust packages

    Raises FolderInUseError where another process runs the sweep.
    """
    with locked(ledger.folder):
        for job in waiting_again(to_do):
            ledger.put(job)
        ledger.exit_code = None
        ledger.write()
        follower.begin(len(to_do))
        ledger.exit_code = _Jobs(ledger, to_do, follower, tuple(hydra), tuple(typed)).run()
        ledger.write()
    return ledger.exit_code


class _Jobs:
    """Those that wait, and those that run."""

    def __init__(
        self, ledger: Ledger, to_do: Sequence[Job], follower: Follower, hydra: tuple[str, ...], typed: tuple[str, ...]
    ) -> None:
        self._ledger = ledger
        self._waiting = deque(to_do)
        self._running: list[Running] = []
        self._follower = follower
        self._hydra = hydra
        self._typed = typed
        self._received = Received()
        self._failed = False

    def run(self) -> int:
        """Until all have ended; the exit code of the sweep."""
        with watching(self._pass_on, self._save) as self._received:
            try:
                while self._running or (self._waiting and not self._is_stopping):
                    self._start_some()
                    for one in processes.wait(self._running):
                        self._take(one)
            except (KeyboardInterrupt, Terminated):
                self._hurry()
        if self._received.number is not None:
            return self._received.exit_code
        return exit_code(self._ledger.jobs)

    @property
    def _is_stopping(self) -> bool:
        return self._received.number is not None or (self._failed and self._ledger.fail_fast)

    def _start_some(self) -> None:
        ledger = self._ledger
        while self._waiting and len(self._running) < ledger.at_a_time and not self._is_stopping:
            job = replace(self._waiting.popleft(), status="running", exit_code=None, error=None)
            folder = ledger.place(job)
            folder.mkdir(exist_ok=True)
            ledger.put(job)
            self._follower.started(job)
            output = folder / "output.txt" if ledger.at_a_time > 1 else None
            one = processes.start(Order(job, folder, self._hydra, self._typed, ledger.threads, output))
            self._running.append(one)
            if self._received.number is not None and not one.signalled:
                one.send(self._received.number)  # it came before the job was in the list

    def _take(self, one: Running) -> None:
        """The job has ended: see how, and record it."""
        self._running.remove(one)
        ledger, number = self._ledger, one.order.job.number
        job = ledger.look_again(number)
        if job.status in ("waiting", "died") and one.signalled and job.steps is None:
            # asked to end before its run began
            begun = (ledger.place(job) / "run.json").exists()
            job = replace(job, status="died" if begun else "waiting")
        elif job.status in ("waiting", "running", "died"):
            fix = f"see {ledger.place(job)}; mlorun resume {ledger.folder} goes on with it"
            error = f"error: the job left no result: {processes.how_it_ended(one.process)}\n  fix    {fix}"
            job = replace(job, status="died", exit_code=one.process.exitcode or 1, error=error)
        ledger.put(job)
        self._follower.ended(job, one.seconds)
        if job.status not in ("finished", "waiting", "interrupted", "preempted") and not self._failed:
            self._failed = True
            if ledger.fail_fast:
                for other in self._running:
                    other.send(signal.SIGTERM)

    def _pass_on(self) -> None:
        """The first signal: every job that runs finishes its step, saves, and ends."""
        number = self._received.number
        if number is None:
            return  # no job has started yet
        for one in self._running:
            if not one.signalled:
                one.send(number)
        self._follower.stopping(signal.Signals(number).name)

    def _save(self) -> None:
        if hasattr(signal, "SIGUSR1"):
            for one in self._running:
                one.send(signal.SIGUSR1)

    def _hurry(self) -> None:
        """A second signal: the jobs end at once. A third, or one that does not end: they are killed."""
        number = self._received.number or ENDING[0]
        try:
            for one in self._running:
                one.send(number)
            while self._running:
                ended = processes.wait(self._running, PATIENCE)
                for one in ended:
                    self._take(one)
                if not ended:
                    break
        except (KeyboardInterrupt, Terminated):
            pass
        for one in list(self._running):
            one.process.kill()
            one.process.join()
            self._take(one)
