"""Short forms of overrides, written out for Hydra."""

from __future__ import annotations

import pytest

from mlorun.config.compose import composed, expanded
from tests.experiments import PLAIN, Experiments

pytestmark = pytest.mark.usefixtures("empty_folder")
DIGITS = "experiment=mwn_digits"


@pytest.mark.parametrize(
    ("short", "written"),
    [
        ("classifier.optimizer.lr=0.05", "problems.classifier.optimizer.lr=0.05"),
        ("+classifier.temperature=2", "+problems.classifier.temperature=2"),
        ("++classifier.batch_size=5", "++problems.classifier.batch_size=5"),
        ("~classifier.optimizer.lr", "~problems.classifier.optimizer.lr"),
        ("classifier.module.sizes=[64,10]", "problems.classifier.module.sizes=[64,10]"),
        ("classifier.batch_size=10,20", "problems.classifier.batch_size=10,20"),
        ("classifier.hypergradient=cg", "hypergradient@problems.classifier.hypergradient=cg"),
        ("classifier.hypergradient=cg,t1t2", "hypergradient@problems.classifier.hypergradient=cg,t1t2"),
        ("+classifier.optimizer=adam", "optimizer@problems.classifier.optimizer=adam"),
        ("~classifier.scheduler", "~scheduler@problems.classifier.scheduler"),
        ("problems.classifier.optimizer=adam", "optimizer@problems.classifier.optimizer=adam"),
        ("classifier.scheduler={}", "problems.classifier.scheduler={}"),
        ("classifier.problem=classifier", "problem@problems.classifier=classifier"),
        ("classifier.problem=classifier,tuned_classifier", "problem@problems.classifier=classifier,tuned_classifier"),
        ("problems.classifier.problem=classifier", "problem@problems.classifier=classifier"),
    ],
)
def test_an_override_that_begins_with_a_problem_is_written_out(short: str, written: str) -> None:
    assert expanded([DIGITS, short]) == [DIGITS, written]


@pytest.mark.parametrize(
    "text",
    [
        "engine.train_iters=5",
        "problems.classifier.batch_size=5",
        "hypergradient@problems.classifier.hypergradient=cg",
        "hydra.sweep.dir=elsewhere",
        "hydra/launcher=basic",
        "data.imbalance_factor=10,50",
        "+trusted_packages=[mine]",
        "-m",
        "--config-dir=some.where",
        "classifie.optimizer.lr=1",  # Hydra will say that there is no such key
        "seed=0,1",
    ],
)
def test_everything_else_is_passed_on_as_it_is(text: str) -> None:
    assert expanded([DIGITS, text]) == [DIGITS, text]


def test_a_group_that_the_experiment_does_not_choose_from_is_added(own_configs: Experiments) -> None:
    own_configs.raw("experiment/bare.yaml", PLAIN)
    written = expanded(["experiment=bare", "classifier.scheduler=cosine"])
    assert written[1] == "+scheduler@problems.classifier.scheduler=cosine"
    config = composed(["experiment=bare", "classifier.scheduler=cosine"])
    assert config.problems.classifier.scheduler._target_.endswith("CosineAnnealingLR")


def test_an_option_and_its_own_keys_can_be_set_together() -> None:
    config = composed([DIGITS, "classifier.scheduler=step", "classifier.scheduler.step_size=7"])
    assert config.problems.classifier.scheduler.step_size == 7


def test_in_a_sweep_over_experiments_the_first_decides() -> None:
    written = expanded(["experiment=mwn_digits,mwn_mnist", "classifier.batch_size=5"])
    assert written[1] == "problems.classifier.batch_size=5"
