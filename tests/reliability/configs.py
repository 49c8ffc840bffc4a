"""Broken configs and command lines, each given to `mlorun check`: one screen, exit code 2, at once, and nothing left.

    python -m tests.reliability.configs --count 20000
    python -m tests.reliability.configs --case 1234      the files, the words and the screen of one case

Each case is a fork of a process that has imported everything, in a folder of its own. A case is at fault where

    traceback   a screen shows one, or names a file with one
    exit code   it is neither 0 nor 2
    time        it takes over 2 CPU seconds
    traces      a file is left that was not there before
    raw         a control character reaches the screen as it is
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import shutil
import socket
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.reliability.mutated_configs import EXPERIMENTS, Case, case, short, whole
from tests.reliability.processes import forked

MOST_SECONDS = 2.0  # of the processor
KILLED_AFTER = 20  # CPU seconds
MEMORY = 6 << 30  # bytes beyond what the parent has
FAULTS = ("traceback", "exit code", "time", "traces", "raw")


@dataclass(frozen=True)
class Outcome:
    """How one case ended."""

    code: int
    seconds: float
    screen: str
    left: tuple[str, ...]
    log: str  # of a traceback

    @property
    def faults(self) -> list[str]:
        """Which of FAULTS it has."""
        wrong = {
            "traceback": "Traceback" in self.screen or "traceback" in self.screen,
            "exit code": self.code not in (0, 2),
            "time": self.seconds > MOST_SECONDS,
            "traces": bool(self.left),
            "raw": any(unicodedata.category(mark) in ("Cc", "Cf") and mark != "\n" for mark in self.screen),
        }
        return [name for name in FAULTS if wrong[name]]


def tried(one: Case, folder: Path, verb: str = "check") -> Outcome:
    """Run a case in an empty folder, which is removed."""
    work, tmp = folder / "work", folder / "tmp"
    for path in (work, tmp):
        path.mkdir(parents=True)
    for name, content in one.files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_bytes(content)
    before = everything(folder)
    pid = forked(lambda: child(verb, one.words, work, tmp, folder / "screen"))
    _, status, usage = os.wait4(pid, 0)
    screen = (folder / "screen").read_bytes().decode(errors="replace")
    left = tuple(sorted(everything(folder) - before - {"screen"}))
    log = "".join(path.read_text(errors="replace") for path in tmp.glob("*.log"))
    shutil.rmtree(folder)
    return Outcome(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, screen, left, log)


def child(verb: str, words: Sequence[str], work: Path, tmp: Path, screen: Path) -> int:
    """What `mlorun VERB WORDS` does, with its screen in a file, and no network."""
    from mlorun.cli import main

    out = os.open(screen, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.chdir(work)
    os.environ.update(TMPDIR=str(tmp), XDG_CONFIG_HOME=str(tmp / "config"), MLORUN_DATA=str(work / "data"))
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_CPU, (KILLED_AFTER, KILLED_AFTER))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY + size_now(),) * 2)
    socket.socket.connect = no_network  # type: ignore[method-assign,assignment]
    return main([verb, *words])


def no_network(*args: Any) -> None:
    raise OSError("no network here")


def size_now() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def prepare() -> None:
    """Import and compute once what every case needs."""
    import torchvision.models  # noqa: F401

    from mlorun.cli import main

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for experiment in EXPERIMENTS:
        whole(experiment)
        short(experiment)
        main(["check", f"experiment={experiment}"])
    main(["check", "experiment=mwn_digits", "classifier.optimizer.lrr=1"])
    gc.freeze()  # or the first collection in a child copies every page of the parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="show this case alone")
    given = parser.parse_args()
    with TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        os.chdir(name)
        prepare()
        if given.case is not None:
            return shown(given.seed, given.case, Path(name) / "case")
        return counted(given.seed, range(given.first, given.first + given.count), Path(name) / "case")


def counted(seed: int, numbers: range, folder: Path) -> int:
    """Try all, print every faulty case and the counts; the number of faults."""
    faults: Counter[str] = Counter()
    codes: Counter[int] = Counter()
    seconds = slowest = 0.0
    for number in numbers:
        outcome = tried(case(seed, number), folder)
        codes[outcome.code] += 1
        seconds += outcome.seconds
        slowest = max(slowest, outcome.seconds)
        faults.update(outcome.faults)
        if outcome.faults:
            lines = [line for line in outcome.screen.splitlines() if line.strip()]
            first = repr(" / ".join(lines[:3]))[:300]
            print(f"case {number}: {', '.join(outcome.faults)}; code {outcome.code}, {outcome.seconds:.1f} s: {first}")
            print("".join(f"    {line.strip()}\n" for line in outcome.log.splitlines()[-7:]), end="")
            sys.stdout.flush()
        if (number + 1) % 1000 == 0:
            print(f"{number + 1 - numbers.start:,} tried, {sum(faults.values())} faults", flush=True)
    ends = ", ".join(f"{count:,} times {code}" for code, count in sorted(codes.items()))
    print(f"{len(numbers):,} cases; exit codes: {ends}; {seconds:.0f} CPU s, the slowest {slowest:.2f}")
    print("; ".join(f"{name}: {faults[name]}" for name in FAULTS))
    return sum(faults.values())


def shown(seed: int, number: int, folder: Path) -> int:
    """Print all of one case."""
    one = case(seed, number)
    for path, content in one.files.items():
        print(f"--- {path}\n{content!r}" if b"\x00" in content else f"--- {path}\n{content.decode(errors='replace')}")
    print("--- mlorun check", *map(repr, one.words))
    outcome = tried(one, folder)
    print(outcome.screen + outcome.log)
    print(f"--- code {outcome.code}, {outcome.seconds:.2f} s, left {outcome.left}; faults: {outcome.faults}")
    return len(outcome.faults)


if __name__ == "__main__":
    sys.exit(min(main(), 1))
