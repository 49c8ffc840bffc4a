"""meta_loss: a loss that is learned so that fresh networks withstand wrong labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from mlorun.recipes.meta_loss import LossNet, ScaledCrossEntropy

from tests.recipes.runs import engine, metrics

pytestmark = pytest.mark.usefixtures("empty_folder")
SMALL = ("data.tasks.train=20", "data.tasks.valid=5", "data.tasks.test=20", "data.shots=4")


def test_a_learned_loss_treats_all_classes_alike() -> None:
    loss, order = LossNet(5), torch.tensor([2, 0, 3, 1])
    outputs, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    renamed = torch.stack([(order == label).nonzero()[0, 0] for label in labels])
    torch.testing.assert_close(loss(outputs[:, order], renamed), loss(outputs, labels))


def test_the_baseline_is_cross_entropy_at_first() -> None:
    outputs, labels = torch.randn(2, 3, 4), torch.randint(4, (2, 3))
    losses = ScaledCrossEntropy()(outputs, labels)
    torch.testing.assert_close(losses.mean(), F.cross_entropy(outputs.flatten(0, 1), labels.flatten()))


def test_every_task_starts_from_weights_of_its_own_drawn_as_torch_draws_them() -> None:
    learner = engine("meta_loss", *SMALL).problems["learner"]
    first, second = learner.starts(200), learner.starts(200)
    assert not torch.equal(first[0], second[0]) and not torch.equal(first[0][0], first[0][1])
    drawn = [torch.nn.Linear(inputs, outputs) for _ in range(100) for inputs, outputs in ((64, 32), (32, 5))]
    for index, weights in enumerate(first):
        like = torch.stack([list(layer.parameters())[index % 2] for layer in drawn[index // 2 :: 2]])
        assert weights.shape[1:] == like.shape[1:]
        assert float(weights.std()) == pytest.approx(float(like.detach().std()), rel=0.1)


def test_a_step_of_a_loss_lowers_the_error_of_the_networks_that_it_trains() -> None:
    long = ("engine.train_iters=80", "learner.unroll_steps=4", "meta.evaluate_after=[4]", "data.noise_rate=0.4")
    untrained = metrics("meta_loss", *SMALL, *long, "meta.optimizer.lr=0")
    trained = metrics("meta_loss", *SMALL, *long, "meta.optimizer.lr=0.03")
    assert trained["test/error_after_4"] < untrained["test/error_after_4"] - 0.03


@pytest.mark.slow
def test_a_learned_loss_beats_cross_entropy_under_wrong_labels() -> None:
    # seed 0: 0.44 and 0.74
    learned, factor = (metrics(name)["test/error_after_20"] for name in ("meta_loss", "meta_loss_baseline"))
    assert 0.3 < learned < 0.55
    assert learned < factor - 0.15
