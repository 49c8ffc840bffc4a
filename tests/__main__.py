"""All checks, one command: `python -m tests` runs ruff, mypy and pytest, which gets the arguments.

mypy runs beside pytest; what it says is printed before pytest's summary, which is the last line. pytest has one
worker a core, unless the arguments say otherwise: `python -m tests -n 0 tests/data` has none. Tests that train for long
are left out; `python -m tests -m slow` runs them, and they want MLORUN_DATA.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent
FIRST = (("ruff", "check", "."), ("ruff", "format", "--check", "."))
BESIDE = ("mypy",)


def main(arguments: list[str]) -> int:
    """The number of checks that failed; every one runs, whatever the others said."""
    failed = []
    for check in FIRST:
        announce(check)
        if subprocess.run(command(check), cwd=ROOT, check=False).returncode:
            failed.append(" ".join(check))
    chosen = () if "-m" in arguments else ("-m", "not slow")
    tests = ("pytest", f"-n{os.cpu_count() or 1}", "--dist=worksteal", *chosen, *arguments)
    announce(tests)
    if sys.stdout.isatty():
        tests = (*tests, "--color=yes")
    with started(BESIDE) as types, started(tests) as pytest:
        assert pytest.stdout is not None
        summary = all_but_the_last(pytest.stdout)
        said = types.communicate()[0]
        announce(BESIDE)
        write(said)
        if types.returncode:
            failed.append(" ".join(BESIDE))
        if pytest.wait():
            failed.append("pytest")
    if failed:
        write(f"failed: {', '.join(failed)}\n".encode())
    write(summary)
    return len(failed)


def command(check: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", *check]


def started(check: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """What it prints, errors too, comes through a pipe."""
    return subprocess.Popen(command(check), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def all_but_the_last(lines: IO[bytes]) -> bytes:
    """Print lines as they come, and give back the last one, not printed."""
    last = b""
    for line in lines:
        write(last)
        last = line
    return last


def announce(check: tuple[str, ...]) -> None:
    write(f"$ {' '.join(check)}\n".encode())


def write(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
