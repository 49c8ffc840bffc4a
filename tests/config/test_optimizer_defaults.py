"""A problem's own numbers for an optimizer option: they come with the option, and not into another."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

import mlorun
from mlorun.cli import main
from mlorun.config.compose import composed
from mlorun.config.locations import options
from mlorun.errors import ConfigError, ConfigErrors
from tests.experiments import Experiments

pytestmark = pytest.mark.usefixtures("empty_folder")
MNIST = "experiment=mwn_mnist"
DIGITS = "experiment=mwn_digits"
SHORT = [DIGITS, "engine.train_iters=2", "threads=1", "logger=jsonl"]
SLOW = "+reweight.optimizer_defaults={adam:{lr:1e-5}}"


def rate(*overrides: str, problem: str = "reweight") -> float:
    return float(composed(list(overrides)).problems[problem].optimizer.lr)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([MNIST], 1e-5),
        ([MNIST, "reweight.optimizer=adam"], 1e-5),
        ([MNIST, "reweight.optimizer=sgd"], 0.1),
        ([MNIST, "reweight.optimizer=adamw"], 1e-3),
        ([MNIST, "reweight.optimizer.lr=0.3"], 0.3),
        ([MNIST, "reweight.optimizer=adam", "reweight.optimizer.lr=1e-3"], 1e-3),
        ([MNIST, "reweight.optimizer_defaults.adam.lr=0.2"], 0.2),
        ([MNIST, "+reweight.optimizer_defaults.sgd.lr=0.4", "reweight.optimizer=sgd"], 0.4),
        ([DIGITS], 1e-3),
        ([DIGITS, SLOW], 1e-5),
    ],
)
def test_a_number_comes_with_its_option_and_the_command_line_wins(overrides: list[str], expected: float) -> None:
    assert rate(*overrides) == expected


def test_problem_options_have_numbers_of_their_own() -> None:
    assert rate("experiment=hpo_digits", problem="tuner") == 0.05
    assert rate("experiment=hpo_digits", "tuner.optimizer=sgd", problem="tuner") == 0.1
    learner = composed(["experiment=maml_sinusoid"]).problems.learner
    assert (learner.optimizer.lr, learner.optimizer.momentum) == (0.01, 0.0)
    assert rate("experiment=maml_sinusoid", problem="meta") == 3e-3


def test_a_list_is_a_default_too() -> None:
    config = mlorun.compose([DIGITS, "+reweight.optimizer_defaults={adam:{betas:[0.5,0.9]}}"])
    assert config.problems.reweight.optimizer.betas == [0.5, 0.9]
    assert composed([DIGITS]).problems.reweight.optimizer.betas == [0.9, 0.999]


def test_show_prints_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", MNIST]) == 0
    screen = capsys.readouterr().out
    assert "lr: 1.0e-05" in screen
    assert "${" not in screen


def test_hydra_resolves_them_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([MNIST, "--cfg", "job", "--resolve", "-p", "problems.reweight.optimizer"]) == 0
    assert "lr: 1.0e-05" in capsys.readouterr().out


def test_a_run_folder_has_the_numbers_of_the_run() -> None:
    assert main([*SHORT, SLOW]) == 0
    config = OmegaConf.load("runs/mwn_digits/latest/config.yaml")
    assert config.problems.reweight.optimizer.lr == 1e-5
    engine = mlorun.build(config)  # type: ignore[arg-type]
    assert engine.problems["reweight"].optimizer.param_groups[0]["lr"] == 1e-5


def test_a_sweep_over_optimizers_gives_each_its_own_number() -> None:
    assert main(["-m", *SHORT, SLOW, "reweight.optimizer=adam,sgd"]) == 0
    (sweep,) = Path("sweeps/mwn_digits").iterdir()
    files = [sweep / str(number) / "config.yaml" for number in (0, 1)]
    assert [OmegaConf.load(file).problems.reweight.optimizer.lr for file in files] == [1e-5, 0.1]


@pytest.mark.parametrize(
    ("override", "where", "nearest"),
    [
        ("+reweight.optimizer_defaults={adm:{lr:1}}", "adm", "adam"),
        ("+reweight.optimizer_defaults={adam:{lrr:1}}", "adam.lrr", "lr"),
        ("+reweight.optimizer_defaults={sgd:{momentm:1}}", "sgd.momentm", "momentum"),
    ],
)
def test_an_unknown_option_or_key_gets_the_nearest_right_one(override: str, where: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mlorun.compose([DIGITS, override])
    assert caught.value.where == f"problems.reweight.optimizer_defaults.{where}"
    assert f"did you mean {nearest}?" in (caught.value.fix or "")


def test_all_mistakes_in_them_are_reported_together() -> None:
    with pytest.raises(ConfigErrors) as caught:
        mlorun.compose([DIGITS, "+reweight.optimizer_defaults={adm:{lr:1},adam:{lrr:1,lr:x}}"])
    assert len(caught.value.faults) == 3


def test_what_is_no_mapping_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DIGITS, "+reweight.optimizer_defaults={adam:0.1}"]) == 2
    assert "reweight.optimizer_defaults" in capsys.readouterr().err


def test_a_user_s_optimizer_takes_defaults_where_its_file_says_so(own_configs: Experiments) -> None:
    own_configs.raw(
        "optimizer/mine.yaml",
        "_target_: torch.optim.SGD\n_partial_: true\nlr: ${optimizer_default:mine,0.3}\nmomentum: 0.5\n",
    )
    chosen = [DIGITS, "reweight.optimizer=mine"]
    assert rate(*chosen) == 0.3
    assert rate(*chosen, "+reweight.optimizer_defaults={mine:{lr:0.6}}") == 0.6
    with pytest.raises(ConfigError, match="'momentum' that takes a default") as caught:
        mlorun.compose([*chosen, "+reweight.optimizer_defaults={mine:{momentum:0.6}}"])
    assert "${optimizer_default:mine,NUMBER}" in (caught.value.fix or "")


@pytest.mark.parametrize("name", list(options("optimizer")))
def test_every_number_of_an_optimizer_takes_a_default_under_its_own_name(name: str) -> None:
    content = OmegaConf.to_container(OmegaConf.load(options("optimizer")[name]), resolve=False)
    assert isinstance(content, dict)
    numbers = {key: value for key, value in content.items() if not str(key).startswith("_")}
    assert numbers and all(str(value).startswith(f"${{optimizer_default:{name},") for value in numbers.values())


def test_a_default_that_refers_to_its_own_number_is_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    number = "problems.reweight.optimizer.lr"
    command = ["check", "experiment=mwn_digits", f"++reweight.optimizer_defaults.adam.lr=${{{number}}}"]
    assert main(command) == 2
    screen = capsys.readouterr().err
    assert "leads back to itself" in screen
    assert number in screen


def test_a_number_that_refers_to_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="a reference in the config leads nowhere"):
        composed([DIGITS, "+reweight.optimizer_defaults.adam.lr=${problems.reweight.optimizer.lr}"])


@pytest.mark.parametrize("content", [b"a: [", b"\xff"])
def test_a_user_s_optimizer_that_cannot_be_read_matters_only_where_it_is_chosen(
    content: bytes, own_configs: Experiments, capsys: pytest.CaptureFixture[str]
) -> None:
    own_configs.raw("optimizer/adam.yaml", "").write_bytes(content)
    assert mlorun.compose([DIGITS, SLOW]).problems.reweight.optimizer.lr == 1e-5
    assert main(["check", DIGITS, SLOW, "reweight.optimizer=adam"]) == 2
    assert "configs/optimizer/adam.yaml" in capsys.readouterr().err


def test_a_wrong_type_in_them_is_shown_where_it_was_typed() -> None:
    with pytest.raises(ConfigError, match="wrong type") as caught:
        composed([DIGITS, "+reweight.optimizer_defaults.adam=0.1"])
    assert caught.value.where == "+reweight.optimizer_defaults.adam=0.1"
