"""A user's ./configs beside ours: nothing of ours is replaced where ours names it."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlorun
from mlorun.cli import main
from mlorun.config.compose import composed
from mlorun.config.locations import configs_dir, options
from mlorun.errors import ConfigError
from tests.experiments import Experiments, shipped

pytestmark = pytest.mark.usefixtures("empty_folder")
DIGITS = "experiment=mwn_digits"
MINE = "# about: mine\n_target_: recipes.mine.Mine\n"


@pytest.mark.parametrize(
    "text", ["seed: 99\n", "defaults: [_self_]\nname: other\n", "defaults:\n  - db: mysql\n", "not yaml: [\n"]
)
def test_a_user_s_primary_config_does_not_replace_ours(
    own_configs: Experiments, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = composed([DIGITS])
    own_configs.raw("config.yaml", text)
    assert composed([DIGITS]) == before
    assert main([DIGITS, "--cfg", "job"]) == 0
    assert "name: mwn_digits" in capsys.readouterr().out


@pytest.mark.parametrize("name", list(options("experiment")))
def test_our_experiments_keep_our_options_whatever_the_user_calls_his(own_configs: Experiments, name: str) -> None:
    for group in ("module", "optimizer", "scheduler", "hypergradient", "problem", "data"):
        for option in options(group):
            own_configs.raw(f"{group}/{option}.yaml", MINE)
    own_configs.raw("logger/console.yaml", MINE)
    assert composed([f"experiment={name}"]) == shipped(name)


def test_the_user_s_option_is_the_one_that_is_chosen_by_the_user(own_configs: Experiments) -> None:
    own_configs.raw(
        "module/mlp.yaml", "_target_: mlorun.recipes.modules.mlp\nsizes: [64, 10]\ndropout: 0.0\nbias: true\n"
    )
    own_configs.write("mine", append="seed: 5\n")
    override = "  - override /module@problems.reweight.module: mlp\nname:"
    file = own_configs.folder / "experiment" / "mine.yaml"
    file.write_text(file.read_text().replace("name:", override, 1))
    sizes = [64, 10]
    assert composed([DIGITS, "classifier.module=mlp"]).problems.classifier.module.sizes == sizes
    assert composed(["experiment=mine"]).problems.reweight.module.sizes == sizes
    assert composed([DIGITS, "classifier.module=mlorun/mlp"]).problems.classifier.module.sizes == [784, 200, 10]
    assert composed([DIGITS, "classifier.module=mlp_sinusoid"]).problems.classifier.module.dropout == 0.0


def test_the_user_s_defaults_of_a_run_come_first(own_configs: Experiments) -> None:
    own_configs.raw("engine/default.yaml", "train_iters: 5\nvalid_every: 0\nlog_every: 3\n")
    assert composed(["experiment=mwn_digits"]).engine.log_every == 3


def test_an_experiment_of_the_same_name_extends_ours(own_configs: Experiments) -> None:
    for name in ("mwn_digits", "mlorun/mwn_digits"):
        own_configs.raw(
            "experiment/mwn_digits.yaml", f"# @package _global_\ndefaults: [{name}, _self_]\nengine: {{log_every: 7}}\n"
        )
        config = mlorun.compose([DIGITS])
        assert (config.engine.log_every, config.engine.valid_every, config.name) == (7, 250, "mwn_digits")


def test_an_option_of_the_same_name_extends_ours(own_configs: Experiments) -> None:
    own_configs.raw("module/mlp.yaml", "defaults: [mlp, _self_]\ndropout: 0.25\n")
    module = composed([DIGITS, "classifier.module=mlp"]).problems.classifier.module
    assert (module.dropout, module.sizes) == (0.25, [784, 200, 10])
    assert composed([DIGITS]).problems.classifier.module.dropout == 0.0


def test_a_file_that_names_only_itself_is_refused(own_configs: Experiments) -> None:
    own_configs.raw("experiment/loop.yaml", "# @package _global_\ndefaults: [loop, _self_]\n")
    with pytest.raises(ConfigError, match="names its own file") as caught:
        composed(["experiment=loop"])
    assert caught.value.where == "configs/experiment/loop.yaml"


def test_the_user_s_optimizer_of_our_name_leaves_our_problems_runnable(own_configs: Experiments) -> None:
    own_configs.raw("optimizer/sgd.yaml", "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.7\n")
    # learner has optimizer_defaults for our sgd
    config = mlorun.compose(["experiment=maml_sinusoid"])
    assert config.problems.learner.optimizer.lr == 0.01
    assert mlorun.compose([DIGITS, "classifier.optimizer=sgd"]).problems.classifier.optimizer.lr == 0.7


def test_ls_shows_both_options_of_one_name(own_configs: Experiments, capsys: pytest.CaptureFixture[str]) -> None:
    own_configs.raw("module/mlp.yaml", MINE)
    assert main(["ls", "module"]) == 0
    screen = capsys.readouterr().out
    assert "mine (yours)" in screen
    assert "mlorun/mlp" in screen and "a multilayer perceptron with ReLU" in screen


def test_a_mistyped_option_of_ours_gets_the_nearest_right_one() -> None:
    with pytest.raises(ConfigError, match="module has no option 'lent'") as caught:
        composed([DIGITS, "classifier.module=mlorun/lent"])
    assert "did you mean lenet?" in (caught.value.fix or "")


def test_our_own_folder_is_not_a_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(configs_dir().parent)
    assert composed([DIGITS]).name == "mwn_digits"


@pytest.mark.parametrize("name", ["sgd", "mine"])
def test_an_option_of_the_user_s_may_start_from_ours_by_its_long_name(own_configs: Experiments, name: str) -> None:
    own_configs.raw(f"optimizer/{name}.yaml", "defaults: [mlorun/sgd, _self_]\nmomentum: 0.25\n")
    optimizer = mlorun.compose([DIGITS, f"classifier.optimizer={name}"]).problems.classifier.optimizer
    assert (optimizer.lr, optimizer.momentum) == (0.1, 0.25)


def test_an_experiment_of_the_user_s_may_start_from_ours_by_its_long_name(own_configs: Experiments) -> None:
    text = "# @package _global_\ndefaults: [mlorun/mwn_digits, _self_]\nseed: 8\n"
    for name in ("mwn_digits", "mine"):
        own_configs.raw(f"experiment/{name}.yaml", text)
        config = mlorun.compose([f"experiment={name}"])
        assert (config.name, config.seed) == ("mwn_digits", 8)
