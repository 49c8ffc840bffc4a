"""The run folder: names that sort and never collide, a pointer to the newest, files that say how it went."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mlorun.errors import ConfigError, ResourceError
from mlorun.run.events import Result
from mlorun.run.folder import RunFolder


def begun(folder: RunFolder, **changes: Any) -> RunFolder:
    facts: dict[str, Any] = {
        "name": "digits",
        "config": "seed: 0\n",
        "argv": ["mlorun", "seed=0"],
        "overrides": ["seed=0"],
        "origin": {"device": "cpu", "threads": 2},
        "precision": "fp32",
    }
    folder.begin(**{**facts, **changes})
    return folder


def test_many_runs_started_at_once_each_get_a_folder_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: RunFolder.create(tmp_path, "digits").path, range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() and folder.parent == tmp_path / "digits" for folder in folders)


def test_run_ids_sort_in_the_order_of_their_making(tmp_path: Path) -> None:
    ids = [RunFolder.create(tmp_path, "digits").path.name for _ in range(20)]
    assert ids == sorted(ids)


def test_a_clock_that_was_set_back_gives_a_folder_of_its_own_and_latest_points_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = RunFolder.create(tmp_path, "digits").path
    times = iter([earlier.name, "20010203-040506-789"])
    monkeypatch.setattr("mlorun.run.folder._run_id", lambda: next(times))
    newest = RunFolder.create(tmp_path, "digits").path
    assert newest.name == "20010203-040506-789"
    assert os.readlink(tmp_path / "digits" / "latest") == newest.name
    assert earlier.is_dir()


def test_latest_is_a_relative_link_to_the_newest_run(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, "digits")
    newest = RunFolder.create(tmp_path, "digits").path
    latest = tmp_path / "digits" / "latest"
    assert os.readlink(latest) == newest.name
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert (moved / "digits" / "latest").is_dir()


def test_where_links_cannot_be_made_latest_is_a_text_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: str, target_is_directory: bool = False) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    newest = RunFolder.create(tmp_path, "digits").path
    assert (tmp_path / "digits" / "latest").read_text() == newest.name + "\n"


def test_a_run_goes_on_when_latest_is_in_the_way(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "digits" / "latest" / "full").mkdir(parents=True)
    assert RunFolder.create(tmp_path, "digits").path.is_dir()
    assert "still points elsewhere" in caplog.text
    assert not [name for name in os.listdir(tmp_path / "digits") if name.startswith(".latest")]


@pytest.mark.parametrize("name", ["", "../digits", "a/b", ".hidden", "a\0b"])
def test_a_name_that_cannot_be_a_folder_is_refused_and_makes_nothing(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="name becomes a folder"):
        RunFolder.create(tmp_path / "runs", name)
    assert os.listdir(tmp_path) == []


def test_a_root_that_is_a_file_is_an_error_with_the_place_and_the_fix(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(ConfigError, match="cannot be made") as caught:
        RunFolder.create(tmp_path / "runs", "digits")
    assert caught.value.where == str(tmp_path / "runs" / "digits")
    assert caught.value.fix is not None
    assert "run.root" in caught.value.fix


def test_a_full_disk_is_an_error_of_resources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, **_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(ResourceError):
        RunFolder.create(tmp_path, "digits")


def test_a_folder_that_holds_a_run_is_not_used_again(tmp_path: Path) -> None:
    begun(RunFolder.at(tmp_path / "job"))
    with pytest.raises(ConfigError, match="holds a run already") as caught:
        RunFolder.at(tmp_path / "job")
    assert caught.value.seen == "run.json with status running"


def test_a_folder_with_other_things_in_it_can_be_used(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    assert begun(RunFolder.at(tmp_path)).run.exists()


def test_run_json_says_what_runs_from_the_start(tmp_path: Path) -> None:
    folder = begun(RunFolder(tmp_path))
    facts = json.loads(folder.run.read_text())
    assert facts["status"] == "running"
    assert facts["argv"] == ["mlorun", "seed=0"]
    assert facts["overrides"] == ["seed=0"]
    assert (facts["origin"], facts["precision"]) == ({"device": "cpu", "threads": 2}, "fp32")
    assert facts["attempts"][0]["pid"] == os.getpid()
    assert folder.config.read_text() == "seed: 0\n"
    assert folder.checkpoints.is_dir()
    assert not folder.result.exists()


def test_the_end_is_in_run_json_and_result_json_and_result_json_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(RunFolder(tmp_path))
    renamed: list[str] = []
    replace = os.replace

    def seen(source: Path, target: Path) -> None:
        renamed.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", seen)
    result = Result("nonfinite", 4, 7, {"loss": float("nan")}, "ab", 1.5, 4.7, error=ValueError("the loss is nan"))
    folder.finish(result)
    assert renamed[-1] == "result.json"
    assert json.loads(folder.result.read_text()) == {**result.as_json(), "metrics": {"loss": "NaN"}}
    facts = folder.facts()
    assert facts["status"] == "nonfinite"
    assert facts["wall_seconds"] == 1.5
    assert facts["started"] <= facts["ended"]
    attempt = facts["attempts"][0]
    assert (attempt["status"], attempt["from_step"], attempt["to_step"]) == ("nonfinite", 0, 7)
    assert attempt["error"] == "ValueError: the loss is nan"


def test_beginning_again_adds_an_attempt_and_keeps_the_first_start(tmp_path: Path) -> None:
    folder = begun(RunFolder(tmp_path))
    folder.finish(Result("interrupted", 130, 7, {}, "ab", 1.0, 7.0))
    started = folder.facts()["started"]
    begun(folder, step=7)
    facts = folder.facts()
    assert [attempt["from_step"] for attempt in facts["attempts"]] == [0, 7]
    assert [attempt["status"] for attempt in facts["attempts"]] == ["interrupted", "running"]
    assert facts["started"] == started
    assert facts["status"] == "running"
    assert not folder.result.exists(), "the run is not over"


def test_a_run_that_was_not_bitwise_once_stays_so(tmp_path: Path) -> None:
    folder = begun(RunFolder(tmp_path))
    assert folder.facts()["bitwise"] is True
    begun(folder, step=7, drift=["threads: 2, now 4"])
    begun(folder, step=9)
    assert folder.facts()["bitwise"] is False
    assert [attempt["drift"] for attempt in folder.facts()["attempts"]] == [[], ["threads: 2, now 4"], []]


def test_drafts_of_killed_writers_go_and_nothing_else(tmp_path: Path) -> None:
    folder = begun(RunFolder(tmp_path))
    mine = {".notes.tmp", "run.json.tmp", ".x.12a.tmp"}
    for name in (*mine, ".run.json.123.tmp", "checkpoints/.step-00000001.pt.9.tmp"):
        (tmp_path / name).write_text("")
    folder.remove_drafts()
    left = {path.name for path in tmp_path.rglob("*") if path.name.endswith(".tmp")}
    assert left == mine


def test_updates_change_what_they_name_and_keep_the_rest(tmp_path: Path) -> None:
    folder = begun(RunFolder(tmp_path))
    before = folder.facts()
    folder.update(seed=3)
    assert folder.facts() == {**before, "seed": 3}
