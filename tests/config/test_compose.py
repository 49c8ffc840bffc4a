"""Composition, and what is said of a config that cannot be composed: message, place, and the nearest right name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import mlorun
from mlorun.cli import main
from mlorun.config.compose import composed
from mlorun.errors import ConfigError
from tests.experiments import Experiments

pytestmark = pytest.mark.usefixtures("empty_folder")
DIGITS = "experiment=mwn_digits"


def fault_of(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        composed(list(overrides))
    return caught.value


def test_a_composed_config_is_resolved_and_has_the_defaults_of_the_schema() -> None:
    config = composed([DIGITS, "seed=7"])
    assert config.data.seed == 7
    assert config.problems.classifier.unroll_steps == 1
    assert "hydra" not in config


def test_compose_checks_what_it_composed() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr has the wrong type"):
        mlorun.compose([DIGITS, "classifier.optimizer.lr=abc"])


def test_composing_leaves_hydra_as_it_was() -> None:
    composed([DIGITS])
    assert not GlobalHydra.instance().is_initialized()


def test_a_config_written_out_is_a_config_again() -> None:
    config = composed([DIGITS])
    assert OmegaConf.create(OmegaConf.to_yaml(config)) == config


def test_the_user_s_own_configs_add_to_ours_and_come_first_where_the_user_chooses(own_configs: Experiments) -> None:
    own_configs.write("mine", append="seed: 5\n")
    own_configs.raw("optimizer/sgd.yaml", "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.7\n")
    config = composed(["experiment=mine", "classifier.optimizer=sgd"])
    assert (config.seed, config.problems.classifier.optimizer.lr) == (5, 0.7)


@pytest.mark.parametrize(
    ("override", "message", "nearest"),
    [
        ("sed=3", "there is no key 'sed'", "seed"),
        ("engine.train_iter=3", "no key 'train_iter' in engine", "train_iters"),
        ("enginee.train_iters=3", "no key 'enginee'", "engine"),
        ("classifie.optimizer.lr=3", "no key 'classifie'", "classifier"),
        ("problems.classifie.batch_size=3", "no key 'classifie' in problems", "classifier"),
        ("classifier.batchsize=3", "no key 'batchsize' in problems.classifier", "batch_size"),
        ("classifier.optimizer.lrr=3", "no key 'lrr' in problems.classifier.optimizer", "lr"),
        ("classifier.optimizer=sdg", "optimizer has no option 'sdg'", "sgd"),
        ("optimizer@problems.classifier.optimizer=sdg", "optimizer has no option 'sdg'", "sgd"),
        ("optimizer@problems.classifie.optimizer=sgd", "no problem 'classifie'", "classifier"),
        ("optimiser@problems.classifier.optimizer=sgd", "no config group 'optimiser'", "optimizer"),
        ("logger=consol", "logger has no option 'consol'", "console"),
    ],
)
def test_a_wrong_name_in_an_override_gets_the_nearest_right_one(override: str, message: str, nearest: str) -> None:
    fault = fault_of(DIGITS, override)
    assert message in fault.message
    assert fault.where is not None
    assert override.split("=")[0].split("@")[0] in fault.where
    assert f"did you mean {nearest}?" in (fault.fix or "")
    assert fault.exit_code == 2


def test_an_unknown_experiment_gets_the_nearest_one() -> None:
    fault = fault_of("experiment=mwn_digit")
    assert fault.where == "experiment=mwn_digit"
    assert "did you mean mwn_digits?" in (fault.fix or "")


@pytest.mark.parametrize(
    ("override", "where"),
    [("seed=abc", "seed=abc"), ("classifier.batch_size=1.5", "classifier.batch_size=1.5"),
     ("classifier.evaluate_on=3", "classifier.evaluate_on=3"), ("deterministic=4.5", "deterministic=4.5")],
)  # fmt: skip
def test_a_value_of_the_wrong_type_is_told_where_it_was_typed(override: str, where: str) -> None:
    fault = fault_of(DIGITS, override)
    assert "wrong type" in fault.message
    assert fault.where == where


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=[1,2", "cannot be read"),
        ("seed", "cannot be read"),
        ("seed=1,2", "several values"),
        ("experiment={a:1}", "group of options"),
        ("optimizer=sgd", "belongs to a problem"),
        ("optimizer.lr=1", "belongs to a problem"),
        ("+seed=2", "there already"),
        ("~sed", "to delete"),
        ("data=3", "chosen by its name"),
    ],
)
def test_an_override_that_makes_no_sense_is_named(override: str, message: str) -> None:
    fault = fault_of(DIGITS, override)
    assert message in fault.message
    assert fault.fix


def test_the_fix_for_a_group_without_a_problem_names_the_problems() -> None:
    assert "classifier.optimizer=" in (fault_of(DIGITS, "optimizer=sgd").fix or "")


def test_broken_yaml_is_told_with_file_line_and_column(own_configs: Experiments) -> None:
    file = own_configs.raw("experiment/broken.yaml", "# @package _global_\nname: broken\n  seed: [1\n")
    assert fault_of("experiment=broken").where == f"{file}, line 3, column 7"


def test_a_fault_in_a_yaml_file_names_the_file(own_configs: Experiments) -> None:
    own_configs.write("badkey", append="enginee: {a: 1}\n")
    fault = fault_of("experiment=badkey")
    assert fault.where == "configs/experiment/badkey.yaml: enginee"
    assert "did you mean engine?" in (fault.fix or "")
    own_configs.write("badtype", append="seed: abc\n")
    assert fault_of("experiment=badtype").where == "configs/experiment/badtype.yaml: seed"


def test_an_unknown_option_in_a_defaults_list_names_the_file(own_configs: Experiments) -> None:
    text = "# @package _global_\ndefaults:\n  - /optimizer@problems.a.optimizer: sdg\n"
    own_configs.raw("experiment/badoption.yaml", text)
    fault = fault_of("experiment=badoption")
    assert "configs/experiment/badoption.yaml" in (fault.where or "")
    assert "did you mean sgd?" in (fault.fix or "")


@pytest.mark.parametrize("reference", ["${sed}", "${oc.env:NO_SUCH_VARIABLE}"])
def test_a_reference_that_leads_nowhere_is_told_by_its_path(reference: str) -> None:
    fault = fault_of(DIGITS, f"classifier.module.sizes=[64,{reference}]")
    assert "leads nowhere" in fault.message
    assert fault.where == "problems.classifier.module.sizes[1]"
    assert reference in (fault.seen or "")


def test_no_message_of_a_fault_has_the_traces_of_its_makers(own_configs: Experiments) -> None:
    own_configs.write("badkey", append="enginee: {a: 1}\n")
    for overrides in (["experiment=badkey"], [DIGITS, "seed=abc"], [DIGITS, "sed=1"]):
        assert not re.search(r"full_key|object_type|hydra\.cc|Traceback", str(fault_of(*overrides)))


def test_our_own_folder_is_not_put_before_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlorun.config.locations import configs_dir, user_configs_dir

    monkeypatch.chdir(configs_dir().parent)
    assert user_configs_dir() is None


def test_recipes_of_the_working_folder_are_importable(empty_folder: Path) -> None:
    from mlorun.config.places import ROOTS
    from mlorun.config.targets import locate

    (empty_folder / "recipes").mkdir()
    (empty_folder / "recipes" / "mine.py").write_text("class Mine:\n    pass\n")
    composed([DIGITS])
    assert locate("recipes.mine.Mine", "here", ROOTS).__module__ == "recipes.mine"


@pytest.mark.parametrize(
    "path",
    ["seed", "name", "run", "dependencies", "problems", "problems.classifier.batch_size",
     "problems.classifier.optimizer_defaults"],
)  # fmt: skip
@pytest.mark.parametrize("command", ["check", "graph"])
def test_a_key_that_mlorun_reads_cannot_be_removed(command: str, path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, DIGITS, f"~{path}"]) == 2
    assert f"error: {path} is removed" in capsys.readouterr().err


def test_an_experiment_without_its_package_is_told_the_line_that_it_lacks(own_configs: Experiments) -> None:
    own_configs.raw("experiment/mine.yaml", "defaults: [mwn_digits, _self_]\nname: mine\n")
    fault = fault_of("experiment=mine")
    assert fault.where == "configs/experiment/mine.yaml"
    assert "# @package _global_" in (fault.fix or "")


@pytest.mark.parametrize("overrides", [[], ["classifier.optimizer=adam"]])
def test_defaults_lists_that_name_each_other_are_a_mistake(own_configs: Experiments, overrides: list[str]) -> None:
    for one, other in (("mine", "yours"), ("yours", "mine")):
        own_configs.raw(f"experiment/{one}.yaml", f"# @package _global_\ndefaults: [{other}, _self_]\nname: {one}\n")
    assert "in a circle" in fault_of("experiment=mine", *overrides).message
    assert main(["experiment=mine", *overrides]) == 2


def test_a_defaults_list_that_is_no_list_is_a_mistake(own_configs: Experiments) -> None:
    own_configs.raw("experiment/mine.yaml", "# @package _global_\ndefaults: mwn_digits\nname: mine\n")
    assert "a defaults list is no list" in fault_of("experiment=mine").message


@pytest.mark.parametrize(
    "entries", ["[1]", "[null]", "[{}]", "[{a: 1}]", "[{a: b, c: d}]", "[[x]]", "[{3: x}]", "['']", "0.5", "{a: b}"]
)
def test_an_entry_of_a_defaults_list_that_is_none_is_a_mistake(entries: str, own_configs: Experiments) -> None:
    own_configs.raw("experiment/mine.yaml", f"# @package _global_\ndefaults: {entries}\nname: mine\n")
    assert fault_of("experiment=mine").where == "the defaults list of configs/experiment/mine.yaml"


@pytest.mark.parametrize("text", ["# @package$_global_\n", "# @package a b\n", "# @package _global_\nseed: !!int ''\n"])
def test_a_first_line_or_a_value_that_yaml_cannot_read_is_a_mistake(text: str, own_configs: Experiments) -> None:
    own_configs.raw("experiment/mine.yaml", text)
    assert "cannot be read" in fault_of("experiment=mine").message


@pytest.mark.parametrize(
    "group", ["experiment=", "experiment=mwn_digits classifier.module=", "experiment=mwn_digits name="]
)
def test_a_name_that_no_file_can_have_is_a_mistake(
    group: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ([], ["check"]):
        assert main([*verb, *f"{group}{'a' * 5000}".split()]) == 2
        assert len(capsys.readouterr().err) < 2_000


def test_marks_that_a_terminal_acts_on_are_printed_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "experiment=mwn_\x1b[31mdigits", "+x=\u202e"]) == 2
    screen = capsys.readouterr().err
    assert r"mwn_\x1b[31mdigits" in screen
    assert "\x1b" not in screen and "\u202e" not in screen


def test_a_config_that_is_no_text_is_a_mistake(own_configs: Experiments, capsys: pytest.CaptureFixture[str]) -> None:
    own_configs.raw("experiment/mine.yaml", "").write_bytes(b"\xff\xfe\x00")
    assert fault_of("experiment=mine").where == "configs/experiment/mine.yaml"
    assert main(["ls", "experiment"]) == 0
    assert "mine" in capsys.readouterr().out


def test_a_problem_that_is_added_as_one_value_has_the_defaults_of_every_problem() -> None:
    sgd = "{_target_: torch.optim.SGD, _partial_: true, lr: 0.1}"
    linear = "{_target_: torch.nn.Linear, in_features: 1, out_features: 1}"
    added = f"{{_target_: mlorun.recipes.reweighting.Reweight, split: balanced, module: {linear}, optimizer: {sgd}}}"
    config = mlorun.compose(["experiment=mwn_digits", f"+problems.third={added}"])
    assert config.problems.third.unroll_steps == 1
    assert config.problems.third.split == "balanced"
    with pytest.raises(ConfigError, match=r"problems\.third\.module has no value"):
        mlorun.compose(["experiment=mwn_digits", "+problems.third={_target_: mlorun.recipes.reweighting.Reweight}"])


@pytest.mark.parametrize(
    ("defaults", "words"),
    [
        ("[{/module@problems.classifier.module: [0, 0]}, _self_]", []),
        ("['???', _self_]", []),
        ("[mwn_digits, _self_, {'': 3}]", []),
        ("[mwn_digits, _self_, {override /data: '${seed}'}]", []),
        ('["mwn\\0digits", _self_]', []),
        ("[mwn_digits, _self_]", ["classifier.module=[0, 0, 0]"]),
        ("[mwn_digits, _self_]", ["+="]),
    ],
)
def test_what_hydra_itself_breaks_on_is_a_screen(
    defaults: str, words: list[str], own_configs: Experiments, capsys: pytest.CaptureFixture[str]
) -> None:
    own_configs.raw("experiment/mine.yaml", f"# @package _global_\ndefaults: {defaults}\n")
    assert main(["check", "experiment=mine", *words]) == 2
    screen = capsys.readouterr().err
    assert "Traceback" not in screen
    assert "traceback" not in screen


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("problems: [1, 2]", "mine.yaml"),
        ("problems: {classifier: [1]}", "mine.yaml"),
        ("problems: {classifier: {optimizer: {_args_: 3}}}", "_args_ is a list of arguments"),
        ("dependencies: {u2l: {reweight: [{a: 1}]}}", "u2l"),
        ("dependencies: {u2l: {reweight: classifier}}", "u2l"),
    ],
)
def test_a_part_of_the_wrong_kind_is_a_screen(
    keys: str, message: str, own_configs: Experiments, capsys: pytest.CaptureFixture[str]
) -> None:
    own_configs.raw("experiment/mine.yaml", f"# @package _global_\ndefaults: [mwn_digits, _self_]\n{keys}\n")
    for verb in ("check", "graph"):
        assert main([verb, "experiment=mine"]) in ((2,) if verb == "check" else (0, 2))
        screen = capsys.readouterr().err
        assert message in screen or verb == "graph"
        assert "traceback" not in screen
