"""Plant each bug of mutants.py in a copy of the repository, and see that a test fails.

    python -m tests.mutation [--named] [WORDS...]

Of each mutant the tests that it names are run first, and where they pass, all of tests/core, tests/hypergradient and
tests/verify. The exit code is 1 where a mutant survives without an explanation, or where its text is not in the code.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent.parent
COPIED = ("mlorun", "tests", "configs", "recipes", "docs", "pyproject.toml", "README.md")
ALL = "tests/core tests/hypergradient tests/verify"
LONGEST = 1800  # seconds of one run of pytest; a mutant that takes longer has failed
OUTCOMES = ("planted", "killed", "equivalent", "survived", "misplaced")
PASSED, FAILED = 0, 1  # exit codes of pytest


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("words", nargs="*", help="only mutants with one of these in their name or file")
    parser.add_argument("--named", action="store_true", help="run the tests alone that each mutant names")
    options = parser.parse_args(arguments)
    chosen = [m for m in MUTANTS if not options.words or any(w in f"{m.file}: {m.name}" for w in options.words)]
    counts: Counter[tuple[str, str]] = Counter()
    sound: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        copy = copied(Path(folder))
        for mutant in chosen:
            start = time.monotonic()
            outcome, seen = outcome_of(mutant, copy, sound, named=options.named)
            counts[mutant.part, "planted"] += 1
            counts[mutant.part, outcome] += 1
            line = f"{outcome:10s} {time.monotonic() - start:5.0f} s  {mutant.file}: {mutant.name}"
            print(f"{line}\n{'':21s}{seen}", flush=True)
    print(table(counts, sorted({mutant.part for mutant in chosen})))
    return int(any(counts[part, bad] for part, _ in list(counts) for bad in ("survived", "misplaced")))


def copied(folder: Path) -> Path:
    """A copy of the repository, whose own `mlorun` its tests import."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(source, folder / name)
    where = subprocess.run(
        [sys.executable, "-c", "import mlorun; print(mlorun.__file__)"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(where.strip()).is_relative_to(folder.resolve()), f"tests would import {where}"
    return folder


def outcome_of(mutant: Mutant, copy: Path, sound: set[str], *, named: bool) -> tuple[str, str]:
    """One of OUTCOMES, and why.

    sound   tests that are known to pass without a bug; those of this mutant are added
    """
    stages = [mutant.tests] if named else [mutant.tests, ALL]
    if mutant.tests not in sound:
        if failed := failure(mutant.tests, copy):
            raise SystemExit(f"without a bug: {failed}")
        sound.add(mutant.tests)
    file = copy / "mlorun" / mutant.file
    text = file.read_text()
    if text.count(mutant.old) != 1:
        return "misplaced", f"its text occurs {text.count(mutant.old)} times"
    file.write_text(text.replace(mutant.old, mutant.new))
    try:
        for tests in stages:
            failed = failure(tests, copy)
            if failed:
                return "killed", failed
    finally:
        file.write_text(text)
    return ("equivalent", mutant.equivalent) if mutant.equivalent else ("survived", f"after {tests}")


def failure(tests: str, copy: Path) -> str:
    """The first test that fails; "" where all pass."""
    command = [sys.executable, "-B", "-m", "pytest", *shlex.split(tests), "-x", "-n0", "-p", "no:cacheprovider"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        ran = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment, timeout=LONGEST)
    except subprocess.TimeoutExpired:
        return f"no end after {LONGEST} s"
    if ran.returncode == PASSED:
        return ""
    failed = [line for line in ran.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if ran.returncode != FAILED:
        raise SystemExit(f"pytest {tests} ended with {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    return failed[0][:150]


def table(counts: Counter[tuple[str, str]], parts: Sequence[str]) -> str:
    """What became of the mutants, by part."""
    lines = [f"{'':30s}" + "".join(f"{outcome:>12s}" for outcome in OUTCOMES)]
    for name, summed in [*((part, [part]) for part in parts), ("total", [*parts])]:
        numbers = (sum(counts[part, outcome] for part in summed) for outcome in OUTCOMES)
        lines.append(f"{name:30s}" + "".join(f"{number:12d}" for number in numbers))
    return "\n".join(lines)
