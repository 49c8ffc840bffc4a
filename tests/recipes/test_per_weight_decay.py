"""per_weight_decay: a decay for each weight is better than one for all."""

from __future__ import annotations

import pytest
import torch

from tests.recipes.runs import engine, metrics, needs_mnist

pytestmark = pytest.mark.usefixtures("empty_folder")


@pytest.mark.slow
def test_a_decay_for_each_weight_lowers_the_loss_on_data_that_nobody_trains_on() -> None:
    learned, fixed = (metrics(f"per_weight_decay_digits{end}") for end in ("", "_baseline"))
    assert learned["selection/loss"] < 0.8 * fixed["selection/loss"]


def test_every_weight_has_a_decay_and_its_loss_is_the_one_of_the_paper() -> None:
    program = engine("per_weight_decay_digits", "engine.train_iters=30", "decays.optimizer.lr=0.1")
    program.run()
    classifier, decays = program.problems["classifier"], program.problems["decays"]
    assert all(not torch.equal(a, torch.full_like(a, -7.0)) for a in decays.theta)
    by_hand = sum(
        float((a.exp() * w.square()).sum().detach()) for a, w in zip(decays.theta, classifier.theta, strict=True)
    )
    batch = program.problems["decays"].stream.at({"epoch": 0, "position": 0})
    step = classifier.training_step(batch)
    assert float(step["penalty"].detach()) == pytest.approx(by_hand / 2, rel=1e-5)


@needs_mnist
@pytest.mark.slow
def test_per_weight_decay_of_mnist_reaches_its_range() -> None:
    learned, fixed = (metrics(f"per_weight_decay_mnist{end}")["test/accuracy"] for end in ("", "_baseline"))
    assert learned > 91.5  # recipes/README.md
    assert learned > fixed + 1
