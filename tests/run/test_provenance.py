"""Versions, and the git state of a folder."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

import mlorun
from mlorun.run.provenance import git_state, versions


def test_versions_are_those_of_what_runs() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["mlorun"] == mlorun.__version__
    for package in ("torch", "torchvision", "numpy", "hydra-core", "omegaconf"):
        assert found[package] == version(package)


def test_a_folder_outside_git_has_no_git_state(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None


def test_a_machine_without_git_has_no_git_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(Path(__file__).parent) is None


def test_a_checkout_has_a_commit_and_is_dirty_once_a_tracked_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")

    def git(*words: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    assert git_state(tmp_path) == {"commit": None, "dirty": False}
    (tmp_path / "tracked").write_text("a")
    git("add", ".")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD").strip()
    (tmp_path / "untracked").write_text("b")
    assert git_state(tmp_path) == {"commit": head, "dirty": False}
    (tmp_path / "tracked").write_text("b")
    assert git_state(tmp_path) == {"commit": head, "dirty": True}


def test_git_runs_nothing_that_the_checkout_or_the_environment_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = f"touch {tmp_path / 'pwned'}; false"
    for words in (["init", "-q"], ["config", "core.fsmonitor", command]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    for name, value in {"COUNT": "1", "KEY_0": "core.fsmonitor", "VALUE_0": command}.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as it is set inside a hook
    assert git_state(tmp_path) == {"commit": None, "dirty": False}
    assert not (tmp_path / "pwned").exists()
