"""Metrics of recipes, by enumeration."""

from __future__ import annotations

import pytest
import torch
from mlorun.recipes.metrics import area_under_curve, f1


def test_the_area_counts_pairs_in_the_right_order_and_half_of_the_ties() -> None:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 8, (60,), generator=draw).float()
    truth = torch.rand(60, generator=draw) < 0.4
    pairs = scores[truth][:, None] - scores[~truth]
    assert float(area_under_curve(scores, truth)) == pytest.approx(float((pairs.sign() + 1).mean() / 2))


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    chosen = torch.tensor([True, True, True, False, False])
    truth = torch.tensor([True, False, True, True, False])
    precision, recall = 2 / 3, 2 / 3
    assert float(f1(chosen, truth)) == pytest.approx(2 * precision * recall / (precision + recall))
    assert float(f1(~truth, truth)) == 0
