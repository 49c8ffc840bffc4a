"""Runs that are killed at random instants and resumed: do they end in the bits of a run that nobody killed?

    python -m tests.reliability.kills --count 2000        SIGKILL; about a quarter of an hour
    python -m tests.reliability.kills --signals --count 200     200 each of SIGTERM, SIGINT, two SIGINT, SIGHUP; or
                                                          those alone that are named: --signals "SIGINT twice"

Every program of tests/core/test_state.py in turn: every estimator, roll-back, accumulation, dropout, unrolled loops cut
in the middle, bf16. Each is run once to its end; then again and again, killed at a uniformly random
instant of that time, and resumed, until it ends. Compared: params_sha256, and metrics.jsonl byte for byte.

The processes are forks of one that has imported everything, so that an attempt takes less than a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlorun.run import checkpoint
from mlorun.run.folder import RunFolder
from mlorun.run.lock import is_locked
from tests.reliability.processes import attempt, exit_code, forked, outcome, prepare, programs, resume, start

MOST = 4  # kills of one run; then it may end


@dataclass
class Count:
    """What is counted over every program."""

    kills: int = 0
    resumed: int = 0
    other_sha: list[str] = field(default_factory=list)
    other_metrics: list[str] = field(default_factory=list)
    not_resumable: list[str] = field(default_factory=list)

    @property
    def failures(self) -> int:
        """Of every kind."""
        return len(self.other_sha) + len(self.other_metrics) + len(self.not_resumable)


def killed_at_random(name: str, config: Any, home: Path, kills: int, draw: random.Random, count: Count) -> None:
    """Kill and resume one program until it has been killed so often; then compare."""
    whole = home / "whole"
    begin = time.monotonic()
    code = exit_code(forked(lambda: start(config, whole)))
    duration = time.monotonic() - begin
    assert code == 0, f"{name} ends with {code} when nobody kills it"
    expected = outcome(whole)
    done = runs = 0
    while done < kills:
        folder = home / f"{runs}"
        runs += 1
        for _ in range(min(MOST, kills - done)):
            pid = forked(lambda: attempt(config, folder))  # noqa: B023 - called before the loop goes on
            time.sleep(draw.uniform(0, duration))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = exit_code(pid)
            if code >= 0:
                break
            done += 1
            count.kills += 1
        else:
            code = exit_code(forked(lambda: attempt(config, folder)))  # noqa: B023
        if code != 0:
            count.not_resumable.append(f"{name}, {folder.name}: exit code {code}")
            continue
        count.resumed += 1
        sha, metrics = outcome(folder)
        if sha != expected[0]:
            count.other_sha.append(f"{name}, {folder.name}")
        if metrics != expected[1]:
            count.other_metrics.append(f"{name}, {folder.name}")
        if is_locked(folder) or list(folder.rglob("*.tmp")):
            count.not_resumable.append(f"{name}, {folder.name}: a lock or a draft was left")


ROUND = 10  # signals of a kind before it is the turn of the next
SIGNALS = {
    "SIGTERM": ((signal.SIGTERM,), {75}),
    "SIGINT": ((signal.SIGINT,), {130}),
    "SIGINT twice": ((signal.SIGINT, signal.SIGINT), {130}),
    "SIGHUP": ((signal.SIGHUP,), {75}),
}


def uninterrupted(config: Any, folder: Path) -> tuple[float, tuple[str, bytes]]:
    """Seconds and outcome of a run that nobody ends."""
    begin = time.monotonic()
    assert exit_code(forked(lambda: start(config, folder))) == 0
    return time.monotonic() - begin, outcome(folder)


def signalled(
    kind: str, config: Any, home: Path, count: int, draw: random.Random, duration: float, expected: tuple[str, bytes]
) -> list[str]:
    """Faults: another exit code, a run that still says running, a step that was done and not saved after the first
    signal, or a run that does not end in the same bits when it is resumed."""
    numbers, codes = SIGNALS[kind]
    faults = []
    sent = turn = 0
    while sent < count:
        folder = home / f"{kind.replace(' ', '-')}-{turn}"
        turn += 1
        pid = forked(lambda: start(config, folder))  # noqa: B023
        begin = time.monotonic()
        if ended_within(pid, draw.uniform(0.1, 1.0) * duration):
            exit_code(pid)
            duration = time.monotonic() - begin  # the machine has more time for it than before
            continue
        for number in numbers:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                break
            time.sleep(draw.uniform(0, 0.02))
        code = exit_code(pid)
        if not (folder / "run.json").exists() or code == 0:
            duration *= 1.01  # it came before the run began: there is less time; or right at its end
            continue
        status = RunFolder(folder).facts()["status"]
        if status == "finished":
            continue  # it came after the end of the run, before that of its process
        sent += 1
        if code not in codes:
            faults.append(f"exit code {code}")
        if status == "running" and len(numbers) == 1:
            faults.append("still says running")
        if status in ("preempted", "interrupted") and len(numbers) == 1 and newest(folder) != steps(folder):
            faults.append(f"{folder.name}: {steps(folder)} steps done, {newest(folder)} saved")
        if exit_code(forked(lambda: resume(folder))) != 0 or outcome(folder) != expected:  # noqa: B023
            faults.append(f"{folder.name} does not end in the same bits")
        shutil.rmtree(folder)
    return faults


def ended_within(pid: int, seconds: float) -> bool:
    """Wait so long, or until the process has ended."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
            return True
        time.sleep(0.002)
    return False


def steps(folder: Path) -> int:
    """That a run has done, as it says itself."""
    return int(RunFolder(folder).facts()["steps"])


def newest(folder: Path) -> int:
    """The step of its newest checkpoint."""
    return checkpoint.step_of(checkpoint.saved(RunFolder(folder).checkpoints)[0])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--signals", nargs="*", choices=SIGNALS, help="these, or all")
    asked = parser.parse_args(argv)
    prepare()
    draw = random.Random(asked.seed)
    begin = time.monotonic()
    with TemporaryDirectory() as folder:
        home = Path(folder)
        if asked.signals is not None:
            for number in {number for numbers, _ in SIGNALS.values() for number in numbers}:
                signal.signal(number, signal.SIG_DFL)  # nohup and `&` have them ignored, and a run leaves that so
            signal.signal(signal.SIGINT, signal.default_int_handler)
            config, failures = programs(["dropout"])["dropout"], 0
            whole = uninterrupted(config, home / "whole")
            for sent in range(0, asked.count, ROUND):
                number = min(ROUND, asked.count - sent)
                for kind in asked.signals or SIGNALS:
                    faults = signalled(kind, config, home / f"{sent}", number, draw, *whole)
                    failures += len(faults)
                    print(f"{kind}: {sent + number} sent, {failures} faults of all so far {faults[:5]}", flush=True)
            return int(failures > 0)
        count, chosen = Count(), programs(asked.only)
        for index, (name, config) in enumerate(chosen.items()):
            wanted = asked.count * (index + 1) // len(chosen) - count.kills
            killed_at_random(name, config, home / f"{index}", wanted, draw, count)
            print(f"{name}: {count.kills} kills so far, {count.failures} failures", flush=True)
    print(
        f"{count.kills} kills, {count.resumed} runs ended, in {time.monotonic() - begin:.0f} s: "
        f"{len(count.other_sha)} with another params_sha256, {len(count.other_metrics)} with another metrics.jsonl, "
        f"{len(count.not_resumable)} that could not be resumed"
    )
    for fault in (*count.other_sha, *count.other_metrics, *count.not_resumable):
        print(f"  {fault}")
    return int(count.failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
