"""Text mixtures: disjoint splits, corruptions that keep what they say, the same text from the same seed."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from mlorun.recipes.text_mixture import grammar_text, mixture, python_text
from mlorun.recipes.texts import grammar_sentences, python_code, python_documentation
from torch import Tensor

from mlorun.errors import DataError

HELD_OUT = {"validation": 10, "selection": 10, "test": 10}
NUMBERS = b"".join(b"%03d " % number for number in range(600))  # every sequence of 12 bytes comes once


def mixed(**sources: int) -> dict[str, tuple[Tensor, Tensor]]:
    return mixture({"text": NUMBERS}, "text", 0, 11, sources, HELD_OUT)


def rows(split: tuple[Tensor, Tensor]) -> set[bytes]:
    return {bytes(row.tolist()) for row in split[0]}


def test_the_splits_of_a_mixture_are_disjoint_and_each_sequence_knows_its_source() -> None:
    splits = mixed(shuffled_bytes=30, text=20)
    clean = [rows(splits[name]) for name in ("target", *HELD_OUT)]
    assert [len(part) for part in clean] == [20, 10, 10, 10] and len(set.union(*clean)) == 50
    assert splits["train"][1].tolist() == [0] * 30 + [1] * 20
    assert splits["clean"][1].tolist() == [1] * 20 == splits["target"][1].tolist()
    assert rows(splits["union"]) == rows(splits["train"]) | rows(splits["validation"])
    assert splits["validation"][1].tolist() == [1] * 10


def test_shuffled_bytes_keep_their_counts_and_shuffled_words_their_words() -> None:
    splits = mixed(text=20, shuffled_bytes=20, shuffled_words=20)
    sequences, sources = splits["train"]
    text = [bytes(row.tolist()) for row in sequences]
    parts = [[text[row] for row in (sources == source).nonzero().flatten().tolist()] for source in range(3)]
    known = {NUMBERS[start : start + 12] for start in range(0, len(NUMBERS) - 11, 12)}
    assert set(parts[0]) <= known
    for part, key in ((parts[1], sorted), (parts[2], lambda row: sorted(row.split(b" ")))):
        assert not set(part) <= known
        assert all(any(key(row) == key(other) for other in known) for row in part)


def test_the_same_seed_gives_the_same_text_and_another_gives_another() -> None:
    sizes: dict[str, Any] = {"length": 20, "sources": {"sentences": 5, "shuffled_bytes": 5}, "held_out": HELD_OUT}
    first, again, other = (grammar_text(seed=seed, **sizes)["train"][0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert grammar_sentences(0, 40).startswith(b"l")


def test_python_brings_code_and_documentation() -> None:
    assert b"import " in python_code() and b"statement" in python_documentation()
    sources = {"code": 20, "documentation": 20, "shuffled_bytes": 20}
    splits = python_text(seed=0, length=30, sources=sources, held_out=HELD_OUT)
    assert {name: len(split[0]) for name, split in splits.items()} == {
        **HELD_OUT, "train": 60, "clean": 40, "target": 20, "union": 70,
    }  # fmt: skip


def test_a_python_without_its_documentation_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_pages(name: str, *rest: Any) -> Any:
        if name.startswith("pydoc_data"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pages)
    with pytest.raises(DataError, match="without the pages") as caught:
        python_documentation()
    assert "data=grammar_text" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"text": 10, "shufled_bytes": 10}, "no such source"),
        ({"shuffled_bytes": 10}, "the target is no source"),
        ({"text": 1000}, "too short"),
        ({"text": 0}, "at least 1"),
    ],
)
def test_sources_that_cannot_be_are_refused(sources: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        mixed(**sources)
