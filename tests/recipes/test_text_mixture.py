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


def mixed(*sources: str, size: int = 20) -> dict[str, Tensor]:
    return mixture({"text": NUMBERS}, "text", 0, 11, sources, size, HELD_OUT)


def rows(split: Tensor) -> list[bytes]:
    return [bytes(row.tolist()) for row in split]


def test_the_splits_of_a_mixture_are_disjoint_and_train_has_a_sequence_of_every_source_in_a_row() -> None:
    splits = mixed("shuffled_bytes", "text")
    clean = [rows(splits[name]) for name in ("text", *HELD_OUT)]
    assert [len(part) for part in clean] == [20, 10, 10, 10] and len(set().union(*clean)) == 50
    assert splits["train"].shape == (20, 2, 12)
    assert torch.equal(splits["train"][:, 0], splits["shuffled_bytes"])
    assert torch.equal(splits["train"][:, 1], splits["text"])


def test_shuffled_bytes_keep_their_counts_and_shuffled_words_their_words() -> None:
    splits = mixed("text", "shuffled_bytes", "shuffled_words")
    known = {NUMBERS[start : start + 12] for start in range(0, len(NUMBERS) - 11, 12)}
    assert set(rows(splits["text"])) <= known
    for name, key in (("shuffled_bytes", sorted), ("shuffled_words", lambda row: sorted(row.split(b" ")))):
        part = rows(splits[name])
        assert not set(part) <= known
        assert all(any(key(row) == key(other) for other in known) for row in part)


def test_the_same_seed_gives_the_same_text_and_another_gives_another() -> None:
    sizes: dict[str, Any] = {"length": 20, "sources": ["sentences"], "train_size": 5, "held_out": HELD_OUT}
    first, again, other = (grammar_text(seed=seed, **sizes)["train"] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert grammar_sentences(0, 1) == b"li vosh gish mini zesut lu pish vevu. "  # on any machine


def test_python_brings_code_and_documentation() -> None:
    assert b"import " in python_code() and b"statement" in python_documentation()
    sources = ["code", "documentation", "shuffled_bytes"]
    splits = python_text(seed=0, length=30, sources=sources, train_size=20, held_out=HELD_OUT)
    assert {name: len(split) for name, split in splits.items()} == {
        **HELD_OUT,
        **dict.fromkeys([*sources, "train"], 20),
    }


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
    ("source", "size", "message"),
    [("shufled_bytes", 5, "no such source"), ("text", 1000, "too short"), ("text", 0, "at least 1")],
)
def test_sources_that_cannot_be_are_refused(source: str, size: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        mixed(source, size=size)
