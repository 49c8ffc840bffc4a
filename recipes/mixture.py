"""Shares of the sources that a language model trains on, learned on clean text.

The shape of data reweighting at scale: AdamW below, a logit for each source above, SAMA between (Choe et al. 2023,
arXiv:2310.05674). DoReMi (Xie et al. 2023, arXiv:2305.10429) chooses such shares by a minimax game instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun import Metric, Problem
from mlorun.errors import ConfigError

# told apart by readers who do not see red and green (Okabe & Ito 2008)
COLOURS = ((0.00, 0.45, 0.70), (0.90, 0.62, 0.00), (0.00, 0.62, 0.45), (0.80, 0.47, 0.65), (0.34, 0.71, 0.91))


def next_byte_losses(model: Problem, sequences: Tensor) -> Tensor:
    """Mean cross entropy of each sequence's next bytes in nats, (B,); of bytes (B, L + 1)."""
    logits = model(sequences[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten().long(), reduction="none")
    return losses.reshape(len(sequences), -1).mean(1)


def drawn(rows: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Of every row one sequence, its source drawn by the shares: (B, sources, L + 1) to (B, L + 1) and sources (B,)."""
    sources = torch.multinomial(shares, len(rows), replacement=True)
    return rows[torch.arange(len(rows), device=rows.device), sources], sources


class MixtureWeights(nn.Module):
    """A softmax over sources, uniform at the start; called, it gives their shares, (sources,)."""

    def __init__(self, sources: Sequence[str]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(sources)))

    def forward(self) -> Tensor:
        return self.logits.softmax(0)


class LanguageModel(Problem):
    """The next byte's cross entropy on sequences (B, L + 1)."""

    def training_step(self, batch: Any) -> Mapping[str, Metric]:
        return self.evaluation_step(batch)

    def evaluation_step(self, batch: Tensor) -> Mapping[str, Metric]:
        loss = next_byte_losses(self, batch).mean()
        return {"loss": loss, "bits_per_byte": lambda: loss / math.log(2)}


class FixedMixture(LanguageModel):
    """A language model on sources in shares that stay as they are.

    shares   a number for each of the data's sources, in order; what counts is their ratio
    """

    def __init__(self, *, shares: Sequence[float], sources: Sequence[str], **problem: Any) -> None:
        super().__init__(**problem)
        if len(shares) != len(sources) or min(shares) < 0 or sum(shares) <= 0:
            raise ConfigError(
                "there is a share for each source, at least 0, and not all of them are 0",
                where=f"problems.{self.name}.shares",
                seen=f"{list(shares)} for {', '.join(sources)}",
            )
        self.shares = torch.tensor(shares, dtype=torch.float32)

    def get_batch(self) -> Tensor:
        rows = super().get_batch()
        return drawn(rows, self.shares.to(rows.device))[0]


class LearnedMixture(LanguageModel):
    """Lower: a language model on sources in the shares p that `mixture` gives at the time of the draw.

    The loss is the mean of p_s / q_s times each sequence's own, s its source and q = p as it was drawn with: the weight
    is 1, and its derivative that of the expected loss, sum over s of p_s loss_s.
    """

    mixture: Problem

    def get_batch(self) -> tuple[Tensor, Tensor, Tensor]:
        shares = self.mixture().detach()
        sequences, sources = drawn(super().get_batch(), shares)
        return sequences, sources, shares[sources]

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> Mapping[str, Metric]:
        sequences, sources, drawn_with = batch
        weights = self.mixture()[sources] / drawn_with
        return {"loss": (weights * next_byte_losses(self, sequences)).mean()}


class Mixture(Problem):
    """Upper: the language model's loss on clean text. Keeps its shares, and draws them at the end of a run.

    sources   names, in the data's order
    """

    language_model: Problem

    def __init__(self, *, sources: Sequence[str], **problem: Any) -> None:
        super().__init__(**problem)
        self.sources = list(sources)
        self.history: list[Tensor] = []  # the shares after every update

    def training_step(self, batch: Tensor) -> Mapping[str, Metric]:
        shares = self().detach()
        return {
            "loss": next_byte_losses(self.language_model, batch).mean(),
            **{f"share_{name}": shares[index] for index, name in enumerate(self.sources)},
        }

    def param_callback(self) -> None:
        self.history.append(self().detach())

    def state_dict(self) -> Mapping[str, Any]:
        return {"history": list(self.history)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.history = list(state["history"])

    def on_run_end(self) -> None:
        if self.history:
            shares = torch.stack(self.history).cpu()
            named = (dict(zip(self.sources, row, strict=True)) for row in shares.tolist())
            self.save_artifact("shares", [{"update": n, **row} for n, row in enumerate(named, start=1)])
            self.save_artifact("shares_over_time", stacked(shares, height=160, width=480))


def stacked(shares: Tensor, height: int, width: int) -> Tensor:
    """A picture (3, height, width) of shares (T, sources) over time, from left to right: a band for each source, the
    first at the bottom, as high as its share."""
    times = torch.linspace(0, len(shares) - 1, width).round().long()
    tops = shares.cumsum(1)[times]  # (width, sources)
    heights = (torch.arange(height, 0, -1) - 0.5) / height
    band = (heights[:, None, None] > tops[None, :, :-1]).sum(2)  # (height, width)
    return torch.tensor(COLOURS)[band % len(COLOURS)].permute(2, 0, 1)
