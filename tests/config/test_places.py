"""A config can do no more than train: what may be named where, what a file may say, and how large it may be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlorun.cli import main
from mlorun.config.check import check
from mlorun.config.compose import composed
from mlorun.config.places import PLACES, Allowed
from mlorun.errors import ConfigError

DIGITS = "experiment=mwn_digits"
CODE = [
    "os.system", "builtins.eval", "builtins.exec", "subprocess.run", "hydra.utils.get_object",
    "torch.utils.collect_env.run", "torch.load", "torch.distributed.run.main", "torch.hub.load", "torch.save",
    "torch.utils.cpp_extension.load_inline", "torch.jit.load", "torch.compile", "torch.nn.Module.float",
    "torch.nn.Module.__init__", "torch.nn.Linear.forward", "torch.nn.modules.module.register_module_forward_hook",
    "torch.nn.init.normal_", "torch.nn.functional.relu", "torch.os.system", "torch.optim.optimizer.defaultdict",
    "torchvision.models.get_model", "torchvision.models.register_model", "torchvision.datasets.utils.download_url",
    "mlorun.config.annotations.arguments", "mlorun.config.annotations._evaluated", "mlorun.run.checkpoint.load",
    "mlorun.run.atomic.write_bytes", "mlorun.callbacks.checkpoints.Checkpoints", "mlorun.cli.main",
    "mlorun.core.engine.Engine", "mlorun.recipes.modules.torch.load", "mlorun.recipes.modules.nn.Linear",
]  # fmt: skip


@pytest.mark.parametrize("target", CODE)
@pytest.mark.parametrize("place", PLACES)
def test_nothing_that_runs_code_may_stand_anywhere(place: str, target: str) -> None:
    with pytest.raises(ConfigError):
        Allowed.at(place).locate(target, "here")


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("module", "torch.nn.Linear"), ("module", "torchvision.models.resnet18"),
        ("module", "mlorun.recipes.modules.mlp"),
        ("argument", "torch.nn.BCELoss"), ("optimizer", "torch.optim.SGD"),
        ("scheduler", "torch.optim.lr_scheduler.ReduceLROnPlateau"), ("data", "mlorun.data.digits.digits_long_tailed"),
        ("hypergradient", "mlorun.hypergradient.estimators.unrolled.Unrolled"),
        ("logger", "mlorun.loggers.jsonl.JsonlLogger"),
        ("callback", "mlorun.callbacks.early_stopping.EarlyStopping"),
        ("problem", "mlorun.recipes.reweighting.Reweight"),
    ],
)  # fmt: skip
def test_what_belongs_to_a_place_may_stand_there_and_nowhere_else(place: str, target: str) -> None:
    assert callable(Allowed.at(place).locate(target, "here"))
    others = (
        set(PLACES)
        - {place, "hypergradient part"}
        - ({"module", "argument"} if place in ("module", "argument") else set())
    )
    for other in others:
        if target.startswith("mlorun.recipes"):
            continue  # a recipe may bring parts of any kind
        with pytest.raises(ConfigError):
            Allowed.at(other).locate(target, "here")


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("classifier.module", "torch.optim.SGD"), ("classifier.optimizer", "torch.nn.Linear"), ("data", "torch.load"),
        ("logger.console", "torch.utils.collect_env.run"), ("classifier.hypergradient.solve", "torch.load"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("empty_folder")
def test_check_and_a_run_refuse_the_same(key: str, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    override = f"{key}._target_={target}"
    assert main(["check", DIGITS, override]) == 2
    refused = capsys.readouterr().err
    assert main([DIGITS, override]) == 2
    assert capsys.readouterr().err == refused
    assert "may not stand here" in refused
    assert list(Path().iterdir()) == []


def test_a_node_below_a_node_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"torch\.load may not stand here"):
        check(composed([DIGITS, "+classifier.module.sizes.0={_target_:torch.load,f:x}"]))


def written(folder: Path, name: str, text: str) -> None:
    path = folder / "configs" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


MINE = "# @package _global_\ndefaults: [mwn_digits, _self_]\n"


def test_a_file_may_not_trust_and_a_person_may(empty_folder: Path) -> None:
    written(empty_folder, "experiment/mine", MINE + "trusted_packages: [collections]\n")
    with pytest.raises(ConfigError, match="a file trusts collections, and only a person may"):
        composed(["experiment=mine"])
    assert main(["experiment=mine"]) == 2
    composed(["experiment=mine", "trusted_packages=[collections]"])


def test_a_file_of_the_user_may_trust(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(empty_folder / "home"))
    with pytest.raises(ConfigError, match="collections is not a trusted package"):
        Allowed.at("module").locate("collections.OrderedDict", "here")
    (empty_folder / "home" / "mlorun").mkdir(parents=True)
    (empty_folder / "home" / "mlorun" / "trusted_packages").write_text("collections\n")
    assert callable(Allowed.at("module").locate("collections.OrderedDict", "here"))


HYDRA = {
    "callbacks": MINE + "hydra: {callbacks: {x: {_target_: torch.utils.collect_env.run, command: touch pwned}}}\n",
    "environment": MINE + "hydra: {job: {env_set: {PATH: /tmp}}}\n",
    "logging": MINE + "hydra: {job_logging: {handlers: {x: {class: logging.FileHandler, filename: pwned}}}}\n",
    "search path": MINE + "hydra: {searchpath: ['file:///tmp']}\n",
    "everything": MINE + "hydra: 3\n",
    "package": "# @package hydra.callbacks\nx: {_target_: torch.utils.collect_env.run, command: touch pwned}\n",
    "global package": "# @package _global_.hydra.job\nenv_set: {PATH: /tmp}\n",
    "launcher": "# @package _global_\ndefaults: [mwn_digits, {override /hydra/launcher: mine}, _self_]\n",
    "package of an entry": "# @package _global_\ndefaults: [mwn_digits, {/data@hydra.callbacks: mine}, _self_]\n",
}


@pytest.mark.parametrize("kind", HYDRA)
@pytest.mark.parametrize("verb", [[], ["check"], ["show"], ["-m"]], ids=["run", "check", "show", "sweep"])
def test_a_file_may_not_set_hydra(
    kind: str, verb: list[str], empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(empty_folder, "experiment/mine", HYDRA[kind])
    written(empty_folder, "data/mine", "x: 1\n")
    assert main([*verb, "experiment=mine", *(["seed=0,1"] if verb == ["-m"] else [])]) == 2
    assert "a config file may not set Hydra" in capsys.readouterr().err
    assert sorted(path.name for path in empty_folder.iterdir()) == ["configs"]


def test_a_file_may_say_where_a_sweep_goes_and_over_what_it_runs(empty_folder: Path) -> None:
    settings = "hydra: {mode: MULTIRUN, sweep: {dir: there}, sweeper: {params: {seed: '0,1'}}}\n"
    written(empty_folder, "experiment/mine", MINE + settings)
    assert composed(["experiment=mine"]).seed == 0


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(6), "too many values"), (bomb(60), "too many values"), ("a: &a [*a]\n", "contains itself"),
        ("a: " + "[" * 200 + "]" * 200, "nested too deeply"), ("a: " + "[" * 100_000, "nested too deeply"),
        ("#" * 1_000_001, "too large"),
    ],
    ids=["9^6", "9^60", "itself", "200 deep", "100,000 deep", "a megabyte"],
)  # fmt: skip
def test_a_file_that_unfolds_without_end_is_refused_at_once(
    text: str, message: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(empty_folder, "experiment/mine", text)
    for verb in ([], ["check"]):
        assert main([*verb, "experiment=mine"]) == 2
        assert message in capsys.readouterr().err
