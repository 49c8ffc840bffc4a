"""label_correction: two upper problems over one classifier mend wrong labels."""

from __future__ import annotations

import pytest
import torch

import mlorun

pytestmark = pytest.mark.usefixtures("empty_folder")


def run(*overrides: str) -> dict[str, float]:
    return dict(mlorun.build(mlorun.compose([*overrides, "engine.valid_every=0"])).run())


def test_both_upper_problems_move_and_labels_get_better() -> None:
    engine = mlorun.build(mlorun.compose(["experiment=label_correction", "engine.train_iters=300"]))
    before = {name: torch.cat([p.detach().flatten() for p in engine.problems[name].theta]) for name in engine.problems}
    metrics = engine.run()
    after = {name: torch.cat([p.detach().flatten() for p in engine.problems[name].theta]) for name in engine.problems}
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert metrics["classifier/labels_right"] > 52  # 50 are right at the start


@pytest.mark.slow
def test_most_wrong_labels_are_mended() -> None:
    metrics = run("experiment=label_correction")
    assert metrics["classifier/labels_right"] > 75
    assert 84 < metrics["test/accuracy"] < 96
