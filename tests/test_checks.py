"""The commands that check mlorun: python -m tests, the lowest versions, pre-commit, CI."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import yaml

from tests.__main__ import BESIDE, FIRST, all_but_the_last
from tests.lowest import lower_bounds

ROOT = Path(__file__).resolve().parent.parent


def test_the_last_line_is_kept_for_the_end(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert all_but_the_last(io.BytesIO(b"....\n== slow ==\n2 passed\n")) == b"2 passed\n"
    assert capfdbinary.readouterr().out == b"....\n== slow ==\n"
    assert all_but_the_last(io.BytesIO(b"")) == b""


def test_every_dependency_has_a_lower_bound_to_be_tried() -> None:
    bounds = lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert {"torch", "torchvision", "pyyaml"} <= {bound.partition("==")[0] for bound in bounds}
    assert lower_bounds('[project]\ndependencies = ["one>=1.2,<2", "two-b >= 3"]') == ["one==1.2", "two-b==3"]
    with pytest.raises(ValueError, match=r"'three' in pyproject.toml has no lower bound"):
        lower_bounds('[project]\ndependencies = ["three"]')


def test_pre_commit_runs_the_same_checks() -> None:
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = [hook["entry"] for hook in local["hooks"]]
    assert entries == [f"python -m {' '.join(check)}" for check in (*FIRST, BESIDE)]


def test_ci_runs_the_command_of_the_readme() -> None:
    pattern = re.search(r"grep -m1 -- '(.+)' README.md", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert pattern is not None
    lines = [
        line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if re.search(pattern[1], line)
    ]
    assert lines
    assert lines[0].endswith("/python -m tests")
    assert '".[dev]"' in lines[0]
