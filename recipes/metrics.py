"""Metrics that recipes share."""

from __future__ import annotations

import torch
from torch import Tensor


def accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Share of right answers in percent, (). `outputs` (B, classes), `labels` (B,)."""
    return 100.0 * (outputs.detach().argmax(dim=1) == labels).float().mean()


def area_under_curve(scores: Tensor, truth: Tensor) -> Tensor:
    """How probable it is that a score where `truth` holds is above one where it does not, (); a tie counts half.

    The area under the ROC curve, for `scores` (N,) and `truth` (N,) bool. NaN where truth has one value only.
    """
    low = torch.sort(scores[~truth].detach()).values
    high = scores[truth].detach()
    below = torch.searchsorted(low, high) + torch.searchsorted(low, high, right=True)
    return below.double().mean() / (2 * len(low)) if len(low) else below.double().mean() * torch.nan


def f1(chosen: Tensor, truth: Tensor) -> Tensor:
    """Harmonic mean of precision and recall, (), for `chosen` and `truth` (N,) bool."""
    right = (chosen & truth).sum()
    return 2 * right / (chosen.sum() + truth.sum()).clamp(min=1)
