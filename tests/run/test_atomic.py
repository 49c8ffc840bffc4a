"""Files are wholly there, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mlorun.run.atomic import atomic_file, write_bytes, write_json


def test_a_file_that_was_not_finished_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def interrupted() -> None:
        with atomic_file(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_the_new_content_is_synced_before_it_gets_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_sync(descriptor: int) -> None:
        calls.append("sync")
        fsync(descriptor)

    def seen_rename(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_sync)
    monkeypatch.setattr(os, "replace", seen_rename)
    write_bytes(tmp_path / "a", b"new")
    assert calls == ["sync", "rename", "sync"]


def test_json_is_indented_and_closed_by_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1})
    assert (tmp_path / "a").read_text() == '{\n  "b": 1\n}\n'
