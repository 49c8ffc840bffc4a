"""Sequences of bytes from several sources, some of them corrupted, and clean held-out splits of one, the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mlorun.data.batches import require_positive
from mlorun.errors import DataError, did_you_mean
from mlorun.run.seeds import derive_seed

from .texts import grammar_sentences, python_code, python_documentation

Sequences = tuple[Tensor, Tensor]  # bytes (N, length + 1) uint8, source (N,)


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
    *, seed: int, length: int, sources: Mapping[str, int], held_out: Mapping[str, int]
) -> dict[str, Sequences]:
    """The splits of `mixture` over Python's own sources, the target `code`, and its `documentation`."""
    texts: dict[str, Callable[[], bytes]] = {"code": python_code}
    if "documentation" in sources:
        texts["documentation"] = python_documentation
    return mixture({name: text() for name, text in texts.items()}, "code", seed, length, sources, held_out)


def grammar_text(
    *, seed: int, length: int, sources: Mapping[str, int], held_out: Mapping[str, int]
) -> dict[str, Sequences]:
    """The splits of `mixture` over `sentences` of a small grammar, made on the spot."""
    size = (sum(sources.values()) + sum(held_out.values())) * (length + 1)
    text = grammar_sentences(derive_seed(seed, "grammar"), size)
    return mixture({"sentences": text}, "sentences", seed, length, sources, held_out)


def mixture(
    texts: Mapping[str, bytes],
    target: str,
    seed: int,
    length: int,
    sources: Mapping[str, int],
    held_out: Mapping[str, int],
) -> dict[str, Sequences]:
    """Disjoint sequences of `length` + 1 bytes, cut from the texts and drawn at random; each with its source's index.

    `train` has `sources[name]` sequences of every source: a text, or a corruption of the target text. `clean` is
    `train` without the corrupted ones, `target` the target alone. The splits of `held_out` are of the target, clean.
    `union` is `train` and `validation`, for baselines. Neighbours in a text may come into different splits.

    Raises DataError where a source is unknown, or a text too short.
    """
    for name, value in {"length": length, **sources, **held_out}.items():
        require_positive(f"data.{name}", value)
    for name in sources:
        if name not in texts and name not in CORRUPTIONS:
            known = [*texts, *CORRUPTIONS]
            raise DataError("no such source of text", where=f"data.sources.{name}", fix=did_you_mean(name, known))
    if target not in sources:
        raise DataError(f"the target is no source: {target}", where="data.sources", fix=f"data.sources.{target}=1000")
    draw = torch.Generator().manual_seed(derive_seed(seed, "text_mixture"))
    pools = {name: _Pool(name, text, length + 1, draw) for name, text in texts.items()}
    names = list(sources)
    splits = {name: _tagged(pools[target].take(count), names.index(target)) for name, count in held_out.items()}
    parts: dict[str, Sequences] = {}
    for index, (name, count) in enumerate(sources.items()):
        if name in texts:
            rows = pools[name].take(count)
        else:
            rows = torch.stack([CORRUPTIONS[name](row, draw) for row in pools[target].take(count)])
        parts[name] = _tagged(rows, index)
    train = _joined(list(parts.values()))
    return {
        **splits,
        "train": train,
        "clean": _joined([part for name, part in parts.items() if name in texts]),
        "target": parts[target],
        "union": _joined([train, splits["validation"]]),
    }


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
                fix="smaller numbers in data.sources or data.held_out, or a shorter data.length",
            )
        taken, self.left = self.left[:count], self.left[count:]
        return taken


def _tagged(rows: Tensor, source: int) -> Sequences:
    return rows, torch.full((len(rows),), source)


def _joined(parts: list[Sequences]) -> Sequences:
    rows, sources = zip(*parts, strict=True)
    return torch.cat(rows), torch.cat(sources)
