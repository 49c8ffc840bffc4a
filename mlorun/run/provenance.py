"""Where a run came from: versions, machine, and the git state of the folder it was started in. No torch."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mlorun.version import __version__

PACKAGES = ("torch", "torchvision", "numpy", "hydra-core", "omegaconf")


def versions() -> dict[str, str | None]:
    """Python, mlorun, and the packages a result depends on; None for one that is not installed."""
    packages: dict[str, str | None] = {"python": platform.python_version(), "mlorun": __version__}
    for package in PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            packages[package] = None
    return packages


def git_state(folder: Path) -> dict[str, Any] | None:
    """{"commit": str | None, "dirty": bool} of the checkout around `folder`, or None where there is none.

    Dirty means that tracked files were changed; untracked ones do not count, for runs/ is often one of them.
    """
    # no-optional-locks: a run must not get in the way of a git command typed meanwhile
    # and nothing that the checkout's own config, or the environment, would have git run
    command = [
        "git", "--no-optional-locks", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null",
        "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--ignore-submodules=all",
    ]  # fmt: skip
    clean = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=False, env=clean)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    lines = done.stdout.splitlines()
    commits = [line.removeprefix("# branch.oid ") for line in lines if line.startswith("# branch.oid ")]
    commit = commits[0] if commits and commits[0] != "(initial)" else None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}
