"""What a disk does to a run: writes cut off at every place, flipped bits, cut files, no space left.

    python -m tests.reliability.disk             all of it; some minutes
    python -m tests.reliability.disk --only crash flips full --flips 10000 --cuts 1000 --sizes 50

crash   the process dies before, or right after, each write, sync, rename, link and removal of a whole run in turn (a
        write is cut in half); then the run is resumed, and must end in the bits of an undisturbed one
flips   one random bit of the newest checkpoint is flipped, or the file is cut at a random length: the older one is used
full    a file system of 4 KB up, and a largest file size: exit code 5, and every checkpoint that is there is whole
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.reliability.processes import attempt, exit_code, forked, outcome, prepare, programs, start

DIED = 137
CALLS = ("fsync", "replace", "unlink", "symlink", "truncate", "mkdir")


def dying(at: int, after: bool) -> None:
    """From now on this process dies at the call with this number; `after` it has been done."""
    count = 0

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at and not after:
                os._exit(DIED)
            result = call(*args, **kwargs)
            if count == at:
                os._exit(DIED)
            return result

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    from mlorun.run import checkpoint

    def cut(self: Any, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == at:
            self._file.write(bytes(data)[: len(data) if after else len(data) // 2])
            self._file.flush()
            os._exit(DIED)
        written: int = self._file.write(data)
        self._digest.update(data)
        return written

    checkpoint._Hashing.write = cut  # type: ignore[method-assign]


def crashes(config: Any, home: Path, every: int = 1) -> tuple[int, list[str]]:
    """How many places, and what did not recover. `every`: only each so manieth place."""
    whole = home / "whole"
    assert exit_code(forked(lambda: start(config, whole))) == 0
    expected = outcome(whole)
    places, faults = 0, []
    for after in (False, True):
        at = 0
        while True:
            at += every
            folder = home / f"{'after' if after else 'before'}-{at}"

            def broken(at: int = at, folder: Path = folder, after: bool = after) -> int:
                dying(at, after)
                return attempt(config, folder)

            if exit_code(forked(broken)) != DIED:
                break
            places += 1
            code = exit_code(forked(lambda folder=folder: attempt(config, folder)))  # type: ignore[misc]
            if code or outcome(folder) != expected:
                faults.append(f"{folder.name}: exit code {code}")
            shutil.rmtree(folder, ignore_errors=True)
    return places, faults


def flips(config: Any, home: Path, flipped: int, cut: int, draw: random.Random) -> tuple[int, list[str]]:
    """How many were tried, and those that were not noticed."""
    from mlorun.run import checkpoint

    assert exit_code(forked(lambda: start(config, home / "run"))) == 0
    folder = home / "run" / "checkpoints"
    newest, older = checkpoint.saved(folder)[:2]
    good, missed = newest.read_bytes(), []
    logging.getLogger("mlorun").disabled = logging.getLogger("mlorun.run").disabled = True
    for index in range(flipped + cut):
        if index < flipped:
            position = draw.randrange(8 * len(good))
            bad = bytearray(good)
            bad[position // 8] ^= 1 << position % 8
            what = f"bit {position}"
        else:
            length = draw.randrange(len(good))
            bad, what = bytearray(good[:length]), f"cut to {length}"
        newest.write_bytes(bad)
        path, _ = next(checkpoint.good_ones(folder))
        if path != older:
            missed.append(what)
    newest.write_bytes(good)
    return flipped + cut, missed


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path | None]:
    """A file system of so many bytes; None where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not sys.platform.startswith("linux") or subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full(config: Any, home: Path, sizes: Sequence[int]) -> tuple[int, int, list[str]]:
    """How many disks and limits were too small, how many were not, and what went wrong."""
    from mlorun.run import checkpoint
    from mlorun.run.checkpoint import CheckpointError

    small, enough, faults = 0, 0, []

    def judge(what: str, code: int, folder: Path) -> None:
        nonlocal small, enough
        small, enough = small + (code == 5), enough + (code == 0)
        if code not in (0, 5):
            faults.append(f"{what}: exit code {code}")
        for path in checkpoint.saved(folder / "checkpoints"):
            try:
                checkpoint.load(path)
            except CheckpointError as error:
                faults.append(f"{what}: {error.message}")

    for size in sizes:
        with small_disk(home / f"disk-{size}", size) as disk:
            if disk is not None:
                judge(f"{size} bytes", exit_code(forked(lambda disk=disk: start(config, disk / "run"))), disk / "run")  # type: ignore[misc]
        folder = home / f"limit-{size}"

        def limited(size: int = size, folder: Path = folder) -> int:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            return start(config, folder)

        judge(f"files of {size} bytes", exit_code(forked(limited)), folder)
    return small, enough, faults


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["crash", "flips", "full"])
    parser.add_argument("--flips", type=int, default=10_000)
    parser.add_argument("--cuts", type=int, default=1_000)
    parser.add_argument("--sizes", type=int, default=25)
    asked = parser.parse_args(argv)
    prepare()
    config, draw, failed = programs(["dropout"])["dropout"], random.Random(0), False
    with TemporaryDirectory() as folder:
        home = Path(folder)
        if "crash" in asked.only:
            places, faults = crashes(config, home / "crash")
            print(
                f"{places} places where the process died, {len(faults)} runs that did not recover {faults[:5]}",
                flush=True,
            )
            failed |= bool(faults)
        if "flips" in asked.only:
            tried, missed = flips(config, home / "flips", asked.flips, asked.cuts, draw)
            print(
                f"{tried} flipped bits and cut files, {len(missed)} that were used all the same {missed[:5]}",
                flush=True,
            )
            failed |= bool(missed)
        if "full" in asked.only:
            (home / "full").mkdir()
            sizes = [4096 * (n + 1) for n in range(asked.sizes)]
            small, enough, faults = full(config, home / "full", sizes)
            print(f"{small} disks and limits too small, each exit code 5; {enough} large enough; faults: {faults}")
            failed |= bool(faults) or small == 0
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
