"""Checkpoints come back whole or not at all; one hash stands for all the bits of a run's modules."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mlorun.run.checkpoint import CheckpointError, load, params_sha256, save, sum_path


def state() -> dict[str, Any]:
    return {
        "step": 7,
        "problems": {"a": {"w": torch.arange(300.0), "half": torch.ones(3, dtype=torch.bfloat16)}},
        "list": [1, "two", None, 3.0],
    }


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "final.pt"
    save(path, state())
    back = load(path)
    assert back["step"] == 7
    assert back["list"] == [1, "two", None, 3.0]
    assert torch.equal(back["problems"]["a"]["w"], torch.arange(300.0))
    assert back["problems"]["a"]["half"].dtype == torch.bfloat16


def test_the_hash_beside_it_is_what_sha256sum_would_write(tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    digest = save(path, state())
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "final.pt.sha256").read_text() == f"{digest}  final.pt\n"
    assert sorted(os.listdir(tmp_path)) == ["final.pt", "final.pt.sha256"]


def test_any_single_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    save(path, state())
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


def test_a_cut_off_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    save(path, state())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        load(path)


def test_a_missing_checkpoint_and_a_missing_hash_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load(path)
    save(path, state())
    sum_path(path).unlink()
    with pytest.raises(CheckpointError, match="is incomplete") as caught:
        load(path)
    assert caught.value.seen == "final.pt.sha256 is missing"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe"])
def test_an_unreadable_hash_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "final.pt"
    save(path, state())
    sum_path(path).write_bytes(content)
    with pytest.raises(CheckpointError, match="hash of the checkpoint is unreadable"):
        load(path)


class Payload:
    """Anything but plain data."""


def test_code_is_never_loaded_even_with_the_right_hash(tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    save(path, {"payload": Payload()})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load(path)


def test_a_save_that_fails_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "final.pt"
    with pytest.raises(Exception, match="pickle"):
        save(path, {"generator": (number for number in range(3))})
    assert os.listdir(tmp_path) == []


def test_the_checkpoint_gets_its_name_only_after_its_hash_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    replace = os.replace

    def seen(source: Path, target: Path) -> None:
        names.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", seen)
    save(tmp_path / "final.pt", state())
    assert names == ["final.pt.sha256", "final.pt"]


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
