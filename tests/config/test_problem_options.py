"""Problem options choose their own parts; every part, and the problem itself, can be chosen anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig

import mlorun
from mlorun.cli import main
from mlorun.config.compose import composed
from mlorun.config.locations import options
from mlorun.config.option_files import defaults_list
from mlorun.errors import ConfigError
from tests.experiments import PLAIN, Experiments, shipped

pytestmark = pytest.mark.usefixtures("empty_folder")
DIGITS = "experiment=mwn_digits"
BASELINE = "experiment=mwn_mnist_baseline"
SHORT = ["engine.train_iters=2", "threads=1", "logger=jsonl"]


def target(config: DictConfig, part: str, problem: str = "classifier") -> str:
    return str(config.problems[problem][part]._target_).rpartition(".")[2]


@pytest.mark.parametrize("name", list(options("problem")))
def test_every_problem_option_chooses_from_each_group_of_a_problem(name: str) -> None:
    chosen = [next(iter(entry)) for entry in defaults_list(options("problem")[name]) if isinstance(entry, dict)]
    assert chosen == ["/module@module", "/optimizer@optimizer", "/scheduler@scheduler", "/hypergradient@hypergradient"]


@pytest.mark.parametrize("name", list(options("experiment")))
def test_an_experiment_chooses_no_option_that_its_problems_choose_already(name: str) -> None:
    whole, entries = shipped(name), defaults_list(options("experiment")[name])
    chosen = {key: option for entry in entries if isinstance(entry, dict) for key, option in entry.items()}
    for key in chosen:
        if "@problems." in key and key.startswith("override /"):
            problem, part = key.partition("@problems.")[2].split(".")
            if f"/problem@problems.{problem}" in chosen:
                option = chosen[f"/problem@problems.{problem}"]
                before = composed(
                    [f"experiment={name}", f"{part}@problems.{problem}.{part}={_own_choice(option, part)}"]
                )
            else:  # the problem is that of an experiment that this one starts from
                before = shipped(next(entry for entry in entries if isinstance(entry, str) and entry != "_self_"))
            assert before.problems[problem][part] != whole.problems[problem][part]


def _own_choice(option: str, part: str) -> str:
    entries = [entry for entry in defaults_list(options("problem")[option]) if isinstance(entry, dict)]
    return str({next(iter(entry)): next(iter(entry.values())) for entry in entries}[f"/{part}@{part}"])


@pytest.mark.parametrize(
    ("overrides", "part", "name"),
    [
        (["classifier.module=lenet"], "module", "LeNet"),
        (["classifier.optimizer=adamw"], "optimizer", "AdamW"),
        (["problems.classifier.optimizer=adam"], "optimizer", "Adam"),
        (["optimizer@problems.classifier.optimizer=adam"], "optimizer", "Adam"),
        (["scheduler@problems.classifier.scheduler=cosine"], "scheduler", "CosineAnnealingLR"),
        (["classifier.scheduler=step", "classifier.scheduler.step_size=7"], "scheduler", "StepLR"),
        (["classifier.hypergradient=unrolled"], "hypergradient", "Unrolled"),
        (["classifier.problem=tuned_classifier"], "hypergradient", "Unrolled"),
        (["classifier.problem=tuned_classifier", "classifier.hypergradient=cg"], "hypergradient", "Implicit"),
        (["classifier.hypergradient=cg", "classifier.problem=tuned_classifier"], "hypergradient", "Implicit"),
        (["problem@problems.classifier=tuned_classifier", "classifier.module=mlp"], "module", "mlp"),
    ],
)
def test_a_part_of_a_problem_is_chosen_on_the_command_line(overrides: list[str], part: str, name: str) -> None:
    assert target(composed([DIGITS, *overrides]), part) == name


def test_a_problem_is_replaced_by_another_with_its_own_numbers() -> None:
    config = mlorun.compose([DIGITS, "classifier.problem=tuned_classifier"])
    assert config.problems.classifier._target_.endswith("TunedClassifier")
    assert config.problems.classifier.batch_size == 50
    # the experiment's own choice of a module stays
    assert config.problems.classifier.module.sizes == [64, 100, 10]


def test_a_key_of_the_problem_that_replaces_another_can_be_set_with_it() -> None:
    config = composed([DIGITS, "classifier.problem=tuned_classifier", "classifier.batch_size=9"])
    assert config.problems.classifier.batch_size == 9


def test_a_replaced_problem_trains() -> None:
    assert main([DIGITS, *SHORT, "classifier.problem=weighted_classifier"]) == 0
    assert main(["experiment=hpo_digits", *SHORT, "classifier.problem=tuned_classifier"]) == 0


def test_a_sweep_over_problems_names_them_in_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["data=digits_long_tailed", "classifier.module=mlp_digits"]
    assert main(["-m", BASELINE, *data, *SHORT, "classifier.problem=classifier,tuned_classifier", "name=two"]) == 3
    screen = capsys.readouterr().out
    assert "classifier.problem" in screen and "tuned_classifier" in screen


def test_a_sweep_over_the_options_of_a_problem_runs_each() -> None:
    assert main(["-m", DIGITS, *SHORT, "classifier.optimizer=sgd,adam", "classifier.module=mlp_digits"]) == 0
    (sweep,) = Path("sweeps/mwn_digits").iterdir()
    texts = [(sweep / str(number) / "config.yaml").read_text() for number in (0, 1)]
    assert ["torch.optim.SGD" in text for text in texts] == [True, False]
    assert [job["exit_code"] for job in json.loads((sweep / "sweep.json").read_text())["jobs"]] == [0, 0]


def test_an_experiment_inherits_another_and_chooses_anew(own_configs: Experiments) -> None:
    own_configs.raw(
        "experiment/child.yaml",
        "# @package _global_\ndefaults:\n  - mwn_digits\n  - _self_\n"
        "  - override /hypergradient@problems.classifier.hypergradient: neumann\n"
        "  - override /module@problems.classifier.module: mlp\nname: child\nengine: {train_iters: 3}\n",
    )
    config = mlorun.compose(["experiment=child"])
    assert target(config, "hypergradient") == "Implicit"
    assert config.problems.classifier.module.sizes == [784, 200, 10]
    assert (config.name, config.engine.train_iters, config.engine.valid_every) == ("child", 3, 250)
    assert target(composed(["experiment=child", "classifier.hypergradient=exact"]), "hypergradient") != "Neumann"


def test_an_experiment_without_problem_options_goes_on_working(own_configs: Experiments) -> None:
    own_configs.raw("experiment/plain.yaml", PLAIN)
    assert main(["experiment=plain", *SHORT]) == 0
    config = composed(["experiment=plain", "classifier.optimizer=adam", "classifier.scheduler=cosine"])
    assert (target(config, "optimizer"), target(config, "scheduler")) == ("Adam", "CosineAnnealingLR")


def test_a_problem_option_beside_parts_that_the_experiment_chose_without_one_is_refused_with_a_fix(
    own_configs: Experiments,
) -> None:
    own_configs.raw("experiment/plain.yaml", PLAIN)
    with pytest.raises(ConfigError, match=r"\w+@problems\.classifier\.\w+ is chosen already") as caught:
        composed(["experiment=plain", "classifier.problem=classifier"])
    assert "- override /" in (caught.value.fix or "")


def test_a_file_that_chooses_a_problem_and_again_its_parts_means_the_parts_that_it_names(
    own_configs: Experiments,
) -> None:
    own_configs.raw(
        "experiment/again.yaml",
        "# @package _global_\ndefaults:\n  - /module@problems.classifier.module: mlp_digits\n"
        "  - /problem@problems.classifier: classifier\n  - /optimizer@problems.classifier.optimizer: adam\n"
        "  - /scheduler@problems.classifier.scheduler: none\n  - _self_\n"
        "  - override /data: digits_long_tailed\nname: again\n",
    )
    config = mlorun.compose(["experiment=again"])
    assert target(config, "optimizer") == "Adam"
    assert config.problems.classifier.module.sizes == [64, 100, 10]
    assert target(composed(["experiment=again", "classifier.optimizer=sgd"]), "optimizer") == "SGD"


def test_a_user_s_problem_option_without_parts_takes_them_from_the_experiment(own_configs: Experiments) -> None:
    own_configs.raw("problem/bare.yaml", "_target_: mlorun.recipes.classification.Classifier\nsplit: train\n")
    own_configs.raw(
        "experiment/bare.yaml",
        "# @package _global_\ndefaults:\n  - /problem@problems.a: bare\n  - /module@problems.a.module: mlp_digits\n"
        "  - /optimizer@problems.a.optimizer: sgd\n  - _self_\n  - override /data: digits_long_tailed\nname: bare\n",
    )
    assert main(["experiment=bare", *SHORT]) == 0
    assert target(composed(["experiment=bare", "a.scheduler=cosine"]), "scheduler", "a") == "CosineAnnealingLR"
    # mwn_digits chooses another module than its problem option, and this option chooses none
    with pytest.raises(ConfigError, match=r"mwn_digits\.yaml overrides module@problems\.classifier\.module") as caught:
        composed([DIGITS, "classifier.problem=bare"])
    assert "/module@module: OPTION" in (caught.value.fix or "")


@pytest.mark.parametrize(
    ("override", "message", "fix"),
    [
        ("problem=classifier", "which problem", "classifier.problem=OPTION or reweight.problem=OPTION"),
        ("classifier.problem=clasifier", "no option 'clasifier'", "did you mean classifier?"),
        ("classifer.problem=classifier", "no key 'classifer'", "did you mean classifier?"),
        ("problem@problems.classifer=classifier", "no problem 'classifer'", "did you mean classifier?"),
    ],
)
def test_a_mistyped_problem_gets_the_nearest_right_one(override: str, message: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        composed([DIGITS, override])
    assert message in caught.value.message
    assert fix in (caught.value.fix or "")
    assert caught.value.where == override
