"""mwn_noisy: the weight net gives samples of high loss less, and the classifier is the better for it."""

from __future__ import annotations

import pytest
import torch

from mlorun.core.program.problem import loss_of
from tests.recipes.runs import engine, metrics, needs_mnist

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_wrong_labels_of_digits_get_less_weight_than_right_ones() -> None:
    program = engine("mwn_noisy_digits")
    end = program.run()
    with torch.no_grad():
        likely, unlikely = program.problems["reweight"].module(torch.tensor([[0.5], [5.0]])).flatten()
    assert unlikely < likely / 2
    assert end["selection/loss"] < metrics("mwn_noisy_digits_baseline")["selection/loss"]


def test_the_loss_depends_on_the_ratios_of_the_weights_alone() -> None:
    program = engine("mwn_noisy_digits", "engine.train_iters=1")
    program.run()
    classifier, reweight = program.problems["classifier"], program.problems["reweight"]
    batch = classifier.stream.at({"epoch": 0, "position": 0})

    def loss(constant: float) -> float:
        with torch.no_grad():
            reweight.module.output.weight.zero_()
            reweight.module.output.bias.fill_(constant)
            return float(loss_of(classifier.training_step(batch), "classifier"))

    inputs, labels = batch
    plain = torch.nn.functional.cross_entropy(classifier.module(inputs), labels)
    assert loss(0.0) == pytest.approx(loss(-3.0), rel=1e-5) == pytest.approx(float(plain.detach()), rel=1e-5)


@needs_mnist
@pytest.mark.slow
def test_mwn_noisy_of_mnist_reaches_its_range() -> None:
    weighted, plain = (metrics(f"mwn_noisy_mnist{end}") for end in ("", "_baseline"))
    # recipes/README.md: the loss is better, the accuracy is not
    assert weighted["test/loss"] < plain["test/loss"] - 0.1
    assert weighted["test/accuracy"] > 84
