"""Short versions of the suites that kill runs and spoil disks; the long ones are commands in docs/reliability.md."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "command",
    [
        ["kills", "--count", "12", "--only", "neumann", "accumulation, unrolled", "roll back"],
        ["kills", "--signals", "--count", "3"],
        ["configs", "--count", "60", "--first", "700"],
        ["places"],
        ["disk", "--only", "flips", "full", "--flips", "60", "--cuts", "20", "--sizes", "6"],
    ],
    ids=" ".join,
)
def test_a_suite_of_reliability_passes_in_short(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"tests.reliability.{command[0]}", *command[1:]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
