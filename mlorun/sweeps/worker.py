"""One job of a sweep, in its own process or in Hydra's: composed, trained or resumed, its end recorded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from mlorun.config.compose import explained, prepare, session
from mlorun.config.places import require_trust
from mlorun.config.resolve import resolve
from mlorun.config.shorthand import PRIMARY
from mlorun.errors import MlorunError
from mlorun.report import named, render
from mlorun.restart import Restart
from mlorun.run.folder import RunFolder
from mlorun.run.signals import ENDING, INTERRUPTED, PREEMPTED, Terminated, behind, raising
from mlorun.sweeps.jobs import Job, write_record
from mlorun.sweeps.processes import Order
from mlorun.training import go_on, train


def work(order: Order) -> None:
    """The whole life of a job's process. It ends with the exit code of the run."""
    try:
        with raising():
            _settle(order)
            code = _done(order)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Terminated:
        code = PREEMPTED
    sys.exit(code)


def run_job(job: Job, folder: Path, composed: Callable[[], DictConfig], typed: Sequence[str]) -> MlorunError | int:
    """Train a job, or go on with it where its folder holds a run. What ended it early, or its exit code.

    composed   its config, not yet resolved
    typed      words of the command line, which may trust packages
    """
    write_record(folder, job)
    home = RunFolder(folder)
    try:
        if home.run.exists():
            prepare()
            trust = [text for text in typed if text.lstrip("+").startswith("trusted_packages=")]
            result = go_on(Restart.of(home, trust))
        else:
            config = composed()
            require_trust(config.trusted_packages, typed)
            resolve(config)
            result = train(config, job.overrides, folder)
    except Exception as error:
        if (came := behind(error)) is not None:
            raise came from None
        cause = explained(error, job.overrides)
        fault = cause if isinstance(cause, MlorunError) else named(error, folder)
        write_record(folder, job, error=render(fault), exit_code=fault.exit_code)
        return fault
    if isinstance(result.error, MlorunError):
        write_record(folder, job, error=render(result.error))
        return result.error
    return result.exit_code


def _settle(order: Order) -> None:
    """Make the process one of its own: its group, its standard output, its end when the sweep's process is gone."""
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)  # the terminal's Ctrl-C reaches the sweep alone, which passes it on once
    os.chdir(order.working_folder)
    os.environ.clear()
    os.environ.update(order.environment)
    if order.output is not None:
        with open(order.output, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def _done(order: Order) -> int:
    end = run_job(order.job, order.folder, lambda: _composed(order), order.typed)
    return end if isinstance(end, int) else end.exit_code


def _composed(order: Order) -> DictConfig:
    """The job's config, with what Hydra says of it: ${hydra:job.num} is its number."""
    with session():
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        words = [*order.hydra, *order.job.overrides]
        config = hydra.config_loader.load_configuration(PRIMARY, words, run_mode=RunMode.MULTIRUN)
        with open_dict(config):
            config.hydra.job.num = config.hydra.job.id = order.job.number
            config.hydra.sweep.dir = str(order.folder.parent)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        if config.threads is None:
            config.threads = order.threads
    return config
