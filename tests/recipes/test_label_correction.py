"""label_correction: two upper problems over one classifier mend wrong labels."""

from __future__ import annotations

import pytest
import torch

from tests.recipes.runs import engine, metrics

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_both_upper_problems_move_and_labels_get_better() -> None:
    built = engine("label_correction", "engine.train_iters=300")
    before = {name: torch.cat([p.detach().flatten() for p in built.problems[name].theta]) for name in built.problems}
    end = built.run()
    after = {name: torch.cat([p.detach().flatten() for p in built.problems[name].theta]) for name in built.problems}
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert end["classifier/labels_right"] > 62  # 60 are right at the start


@pytest.mark.slow
def test_most_wrong_labels_are_mended() -> None:
    end = metrics("label_correction")
    assert end["classifier/labels_right"] > 75
    assert 84 < end["test/accuracy"] < 96
