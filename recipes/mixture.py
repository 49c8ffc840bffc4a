"""Weights of the sources that a language model trains on, learned on clean text.

The program is the shape of data reweighting at scale: AdamW below, one logit a source above, SAMA between (Choe et al.
2023, arXiv:2310.05674). DoReMi (Xie et al. 2023, arXiv:2305.10429) chooses such weights by a minimax game instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem

Batch = tuple[Tensor, Tensor]  # bytes (B, L + 1) uint8, source (B,); see text_mixture.py
# light to dark on white, and apart for readers who do not see red and green (Okabe & Ito 2008)
COLOURS = ((0.00, 0.45, 0.70), (0.90, 0.62, 0.00), (0.00, 0.62, 0.45), (0.80, 0.47, 0.65), (0.34, 0.71, 0.91))


def next_byte_losses(model: Problem, sequences: Tensor) -> Tensor:
    """Mean cross entropy of each sequence's next bytes in nats, (B,); of bytes (B, L + 1)."""
    logits = model(sequences[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten().long(), reduction="none")
    return losses.reshape(len(sequences), -1).mean(1)


class MixtureWeights(nn.Module):
    """A softmax over sources, uniform at the start: sources (B,) to weights (B,), whose mean over the sources is 1."""

    def __init__(self, sources: Sequence[str]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(sources)))

    def forward(self, sources: Tensor) -> Tensor:
        return len(self.logits) * self.logits.softmax(0)[sources]


class LanguageModel(Problem):
    """The next byte's cross entropy, every sequence alike."""

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        return self.evaluation_step(batch)

    def evaluation_step(self, batch: Batch) -> Mapping[str, Metric]:
        loss = next_byte_losses(self, batch[0]).mean()
        return {"loss": loss, "bits_per_byte": lambda: loss / math.log(2)}


class MixedLanguageModel(LanguageModel):
    """Lower: the same, each sequence with the weight that `mixture` gives its source."""

    mixture: Problem

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        sequences, sources = batch
        losses = next_byte_losses(self, sequences)  # (B,)
        return {"loss": (self.mixture(sources) * losses).mean()}


class Mixture(Problem):
    """Upper: the language model's loss on clean text. Keeps its shares, and draws them at the end of a run.

    sources   names, in the order of the data's indices
    """

    language_model: Problem

    def __init__(self, *, sources: Sequence[str], **problem: Any) -> None:
        super().__init__(**problem)
        self.sources = list(sources)
        self.history: list[Tensor] = []

    def shares(self) -> Tensor:
        """The share of every source, (sources,); they sum to 1."""
        logits: Tensor = self.module.logits  # type: ignore[assignment]
        return logits.detach().softmax(0)

    def training_step(self, batch: Batch) -> Mapping[str, Metric]:
        loss = next_byte_losses(self.language_model, batch[0]).mean()
        shares = self.shares()
        return {"loss": loss, **{f"share_{name}": shares[index] for index, name in enumerate(self.sources)}}

    def param_callback(self) -> None:
        self.history.append(self.shares())

    def state_dict(self) -> Mapping[str, Any]:
        return {"history": torch.stack(self.history) if self.history else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = [] if state["history"] is None else list(state["history"])

    def on_run_end(self) -> None:
        if self.history:
            shares = torch.stack(self.history)
            rows = enumerate(shares.tolist(), start=1)
            self.save_artifact(
                "shares", [{"update": n, **dict(zip(self.sources, row, strict=True))} for n, row in rows]
            )
            self.save_artifact("shares_over_time", stacked(shares, height=160, width=480))


def stacked(shares: Tensor, height: int, width: int) -> Tensor:
    """A picture (3, height, width) of shares (T, sources) over time, from left to right: a band for each source, the
    first at the bottom, as high as its share."""
    times = torch.linspace(0, len(shares) - 1, width).round().long()
    tops = shares.cpu().cumsum(1)[times]  # (width, sources)
    heights = (torch.arange(height, 0, -1) - 0.5) / height
    band = (heights[:, None, None] > tops[None, :, :-1]).sum(2)  # (height, width)
    colours = torch.tensor(COLOURS)
    return colours[band % len(colours)].permute(2, 0, 1)
