"""Sequences of bytes from several sources, some of them corrupted, and clean held-out splits of one, the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.errors import DataError, did_you_mean
from mlorun.run.seeds import derive_seed

from .texts import grammar_sentences, python_code, python_documentation


def shuffled_bytes(sequence: Tensor, draw: torch.Generator) -> Tensor:
    """The bytes of a sequence (L,) in random order."""
    return sequence[torch.randperm(len(sequence), generator=draw)]


def shuffled_words(sequence: Tensor, draw: torch.Generator) -> Tensor:
    """The words of a sequence (L,), which spaces part, in random order."""
    words = bytes(sequence.tolist()).split(b" ")
    order = torch.randperm(len(words), generator=draw).tolist()
    return torch.frombuffer(bytearray(b" ".join(words[index] for index in order)), dtype=torch.uint8)


CORRUPTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "shuffled_bytes": shuffled_bytes,
    "shuffled_words": shuffled_words,
}


def python_text(
    *, seed: int, length: int, sources: Sequence[str], train_size: int, held_out: Mapping[str, int]
) -> dict[str, Tensor]:
    """The splits of `mixture` over Python's own sources, the target `code`, and its `documentation`."""
    texts = {"code": python_code()}
    if "documentation" in sources:
        texts["documentation"] = python_documentation()
    return mixture(texts, "code", seed, length, sources, train_size, held_out)


def grammar_text(
    *, seed: int, length: int, sources: Sequence[str], train_size: int, held_out: Mapping[str, int]
) -> dict[str, Tensor]:
    """The splits of `mixture` over `sentences` of a small grammar, made on the spot."""
    size = (len(sources) * train_size + sum(held_out.values())) * (length + 1)
    texts = {"sentences": grammar_sentences(derive_seed(seed, "grammar"), size)}
    return mixture(texts, "sentences", seed, length, sources, train_size, held_out)


def mixture(
    texts: Mapping[str, bytes],
    target: str,
    seed: int,
    length: int,
    sources: Sequence[str],
    train_size: int,
    held_out: Mapping[str, int],
) -> dict[str, Tensor]:
    """Disjoint sequences of `length` + 1 bytes, cut from the texts and drawn at random, uint8.

    Every source is a split of its own, (train_size, length + 1): a text, or a corruption of the target text. `train` is
    all of them, (train_size, sources, length + 1). The splits of `held_out` are of the target. Neighbours in a text may
    come into different splits.

    Raises DataError where a source is unknown, or a text too short.
    """
    for name, value in {"length": length, "train_size": train_size, **held_out}.items():
        require_positive(f"data.{name}", value)
    known = [*texts, *CORRUPTIONS]
    for name in sources:
        if name not in known:
            raise DataError("no such source of text", where="data.sources", seen=name, fix=did_you_mean(name, known))
    draw = torch.Generator().manual_seed(derive_seed(seed, "text_mixture"))
    pools = {name: _Pool(name, text, length + 1, draw) for name, text in texts.items()}
    splits = {name: pools[target].take(count) for name, count in held_out.items()}
    for name in sources:
        rows = pools[name if name in texts else target].take(train_size)
        splits[name] = torch.stack([CORRUPTIONS[name](row, draw) for row in rows]) if name in CORRUPTIONS else rows
    return {**splits, "train": torch.stack([splits[name] for name in sources], dim=1)}


class _Pool:
    """The sequences of one text in random order, each given once."""

    def __init__(self, name: str, text: bytes, size: int, draw: torch.Generator) -> None:
        self.name = name
        rows = len(text) // size
        sequences = torch.frombuffer(bytearray(text[: rows * size]), dtype=torch.uint8).reshape(rows, size)
        self.left = sequences[torch.randperm(rows, generator=draw)]

    def take(self, count: int) -> Tensor:
        if count > len(self.left):
            raise DataError(
                f"the text of {self.name} is too short",
                where="data",
                seen=f"{count} sequences asked for, {len(self.left)} left",
                fix="a smaller data.train_size or data.held_out, or a shorter data.length",
            )
        taken, self.left = self.left[:count], self.left[count:]
        return taken
