"""A process for each job, from a server that has imported torch once; signals are passed on. No torch.

A crash, an exit, a number of threads, a default dtype belong to the job alone, and its memory is given back. Python's
`multiprocessing` has the server ("forkserver"): a job starts within 10 ms of being asked for, instead of 2 s.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection, forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mlorun.run.signals import ENDING
from mlorun.sweeps.jobs import Job

# macOS's own libraries do not bear a fork, and Windows has none
_METHOD = "forkserver" if sys.platform == "linux" else "spawn"


@dataclass(frozen=True)
class Order:
    """What the process of a job is told.

    hydra      overrides of Hydra itself, which every job is composed with
    typed      words of the command line at hand that may trust a package
    threads    for a config that asks for no number of threads
    output     a file for what the job prints; None: where this process prints
    """

    job: Job
    folder: Path
    hydra: tuple[str, ...] = ()
    typed: tuple[str, ...] = ()
    threads: int | None = None
    output: Path | None = None
    working_folder: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


@dataclass
class Running:
    """A job and its process. `signalled`: a signal that ends runs was passed on."""

    order: Order
    process: BaseProcess
    began: float
    signalled: bool = False

    def send(self, number: int) -> None:
        """Pass a signal on; nothing where the process is gone."""
        self.signalled = self.signalled or number in ENDING
        if self.process.pid is not None and self.process.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began


def warm_up() -> None:
    """Start the server, which imports torch while this process reads configs. Nothing where there is no server."""
    _context()
    if _METHOD == "forkserver":
        with _held_back():
            forkserver.ensure_running()


def start(order: Order) -> Running:
    """Start the process of a job."""
    context = _context()
    process = context.Process(target=_work, args=(order,), name=f"mlorun job {order.job.number}")
    with _held_back():
        process.start()
    return Running(order, process, time.monotonic())


def wait(running: Sequence[Running], seconds: float | None = None) -> list[Running]:
    """Those of the jobs that have ended; waits for the first."""
    ready = connection.wait([one.process.sentinel for one in running], seconds)
    ended = [one for one in running if one.process.sentinel in ready]
    for one in ended:
        one.process.join()
    return ended


def how_it_ended(process: BaseProcess) -> str:
    """The end of a process that left no result, in words."""
    code = process.exitcode
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        kill = ": no memory was left, or somebody killed it" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{kill}"
    return f"its process ended with exit code {code}"


def share_of_cores(at_a_time: int) -> int | None:
    """Threads of a job where several run beside each other; None for one alone."""
    if at_a_time == 1:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // at_a_time)


def _work(order: Order) -> None:
    from mlorun.sweeps.worker import work  # imports torch, which the process of the sweep does without

    work(order)


def _context() -> ForkServerContext | SpawnContext:
    context: Any = multiprocessing.get_context(_METHOD)
    if _METHOD == "forkserver":
        context.set_forkserver_preload(["mlorun.sweeps.worker", "torch._dynamo"])  # the latter for the first optimizer
    return context  # type: ignore[no-any-return]


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals that end runs wait meanwhile. A server that starts now, and each of its jobs, begins with that.

    So the server outlives a signal to the whole group, and a job takes signals once it can answer them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # it would let the signals through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
