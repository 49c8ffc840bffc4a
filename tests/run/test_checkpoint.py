"""Checkpoints come back whole or not at all; one hash stands for all the bits of a run's modules."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlorun.run.atomic import point
from mlorun.run.checkpoint import CheckpointError, good_ones, load, params_sha256, save, saved, step_of


def state() -> dict[str, Any]:
    return {
        "step": 7,
        "problems": {"a": {"w": torch.arange(300.0), "half": torch.ones(3, dtype=torch.bfloat16)}},
        "list": [1, "two", None, 3.0],
    }


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    back = load(save(tmp_path / "checkpoints", 7, state()))
    assert back["step"] == 7
    assert back["list"] == [1, "two", None, 3.0]
    assert torch.equal(back["problems"]["a"]["w"], torch.arange(300.0))
    assert back["problems"]["a"]["half"].dtype == torch.bfloat16


def test_step_and_hash_are_in_the_name_and_one_rename_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    replace = os.replace

    def seen(source: Path, target: Path) -> None:
        names.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", seen)
    path = save(tmp_path, 7, state())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert path.name == f"step-00000007-{digest[:16]}.pt"
    assert names == [path.name] == os.listdir(tmp_path)
    assert step_of(path) == 7


def test_any_single_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path, 7, state())
    good = path.read_bytes()
    for position in range(0, len(good), 211):
        bad = bytearray(good)
        bad[position] ^= 1
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match="is damaged") as caught:
            load(path)
        assert caught.value.where == str(path)
    path.write_bytes(good)
    assert load(path)["step"] == 7


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_cut_off_file_is_noticed(tmp_path: Path, length: int) -> None:
    path = save(tmp_path, 7, state())
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)


def test_the_newest_good_one_is_used_and_the_damaged_one_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (9, 10, 123456789):
        save(tmp_path, step, {"at": step})
    newest = saved(tmp_path)[0]
    assert step_of(newest) == 123456789
    newest.write_bytes(b"")
    (tmp_path / "step-7.pt").write_bytes(b"not ours")
    assert [content["at"] for _, content in good_ones(tmp_path)] == [10, 9]
    assert f"the checkpoint is damaged: {newest}" in caplog.text


def test_a_missing_checkpoint_and_a_file_of_another_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "step-00000001-0123456789abcdef.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(tmp_path / "final.pt")
    path = save(tmp_path, 7, state()).rename(tmp_path / "mine.pt")
    with pytest.raises(CheckpointError, match="not the name of a checkpoint"):
        load(path)


@pytest.mark.parametrize("links", [True, False])
def test_a_pointer_leads_to_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(self: Path, target: str, target_is_directory: bool = False) -> None:
        raise OSError("no links here")

    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse)
    point(tmp_path / "final.pt", save(tmp_path, 7, state()).name)
    assert load(tmp_path / "final.pt")["step"] == 7


class Payload:
    """Anything but plain data."""


def named_rightly(folder: Path, content: bytes) -> Path:
    path = folder / f"step-00000001-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path


def archive(**entries: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in entries.items():
            zipped.writestr(f"archive/{name}", content)
    return file.getvalue()


def test_code_is_never_loaded_even_with_the_right_hash(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(save(tmp_path, 7, {"payload": Payload()}))


@pytest.mark.parametrize("content", [b"", b"x" * 5000, archive(data=b"0" * 10**6), pickle.dumps([1] * 3000)])
def test_any_content_with_the_right_hash_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError):
        load(named_rightly(tmp_path, content))


def test_a_small_file_that_unpacks_to_a_large_one_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = save(tmp_path, 7, {"zeros": torch.zeros(10**6)})
    packed = io.BytesIO()
    with zipfile.ZipFile(whole) as entries, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as small:
        for entry in entries.infolist():
            small.writestr(entry.filename, entries.read(entry))
    assert len(packed.getvalue()) < 10**5
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("the file is read"))
    with pytest.raises(CheckpointError, match="unpacks to more than its size"):
        load(named_rightly(tmp_path, packed.getvalue()))


def test_a_save_that_fails_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="pickle"):
        save(tmp_path, 7, {"generator": (number for number in range(3))})
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_as_such_and_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 7, {"w": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


def modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"b": nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "a": nn.Linear(2, 1)}


def test_equal_modules_have_equal_hashes_in_whatever_order_they_are_given() -> None:
    assert params_sha256(modules()) == params_sha256(dict(reversed(modules().items())))


def test_the_hash_changes_with_one_bit_of_a_parameter_or_a_buffer() -> None:
    plain = params_sha256(modules())
    for key in ("0.weight", "1.running_var", "1.num_batches_tracked"):
        changed = modules()
        tensor = changed["b"].state_dict()[key]
        tensor.view(-1).view(torch.uint8)[0] ^= 1
        assert params_sha256(changed) != plain


def test_the_hash_changes_with_name_type_and_shape() -> None:
    def one(name: str, tensor: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return params_sha256({"m": module})

    zeros = torch.zeros(4)
    hashes = [
        one("a", zeros),
        one("b", zeros),
        one("a", zeros.view(2, 2)),
        one("a", torch.zeros(4, dtype=torch.int32)),
        one("a", torch.zeros(0)),
    ]
    assert len(set(hashes)) == len(hashes)


def test_layout_in_memory_does_not_matter_and_every_type_has_a_hash() -> None:
    def one(tensor: torch.Tensor) -> str:
        module = nn.Module()
        module.register_buffer("a", tensor)
        return params_sha256({"m": module})

    grid = torch.arange(6.0).view(2, 3)
    assert one(grid.t()) == one(grid.t().contiguous())
    for dtype in (torch.bfloat16, torch.float16, torch.bool, torch.complex64, torch.int64):
        assert len(one(torch.ones((), dtype=dtype))) == 64
