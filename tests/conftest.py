"""What tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.experiments import Experiments


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def own_configs(empty_folder: Path) -> Experiments:
    """A user's ./configs in an otherwise empty working folder."""
    return Experiments(empty_folder)
