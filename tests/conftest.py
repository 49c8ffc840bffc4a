"""What tests share: one thread a process, folders of a test's own, the wheel, the names of slow files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from tests.experiments import Experiments

ROOT = Path(__file__).resolve().parent.parent
# there is a worker a core, and threads of several processes on the same cores wait for each other; read by torch
os.environ.setdefault("OMP_NUM_THREADS", "1")

SLOW_FILE = 10.0  # seconds

# the same examples every time, whatever else the machine does
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("fixed")


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_configs(empty_folder: Path) -> Experiments:
    """A user's ./configs in an otherwise empty working folder."""
    return Experiments(empty_folder)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """mlorun's wheel, built once for all workers from a source distribution, so that the two carry the same files."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each worker's own folder lies in one that they share
    out = shared / "dist"
    with FileLock(shared / "dist.lock"):
        if not list(out.glob("*.whl")):
            subprocess.run(
                [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)],
                check=True,
                capture_output=True,
                env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            )
    (built,) = out.glob("*.whl")
    return built


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the files whose tests took long, all workers together; the summary line comes after this."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]
    slow = [(took, file) for file, took in seconds.most_common() if took > SLOW_FILE]
    if slow:
        terminalreporter.section(f"files that took over {SLOW_FILE:.0f} s")
        for took, file in slow:
            terminalreporter.write_line(f"{took:6.1f} s  {file}")
