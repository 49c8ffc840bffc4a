"""A user's ./recipes: a package like any other, whatever its files are called."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlorun.cli import main
from mlorun.config.places import ROOTS
from mlorun.config.recipes import make_recipes_importable
from mlorun.config.targets import locate

DIGITS = ["experiment=mwn_digits", "engine.train_iters=2", "threads=1", "logger=jsonl"]


@pytest.fixture
def recipes(empty_folder: Path) -> Path:
    folder = empty_folder / "recipes"
    folder.mkdir()
    return folder


def test_the_init_file_of_the_package_runs(recipes: Path) -> None:
    (recipes / "__init__.py").write_text("from recipes.nets import Wide\nWIDTH = 3\n")
    (recipes / "nets.py").write_text(
        "from torch import nn\n\n\ndef Wide():\n    from recipes import WIDTH\n    return nn.Linear(1, WIDTH)\n"
    )
    make_recipes_importable()
    assert locate("recipes.Wide", "here", ROOTS)().out_features == 3


def test_an_init_file_that_fails_is_reported_on_one_screen(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipes / "__init__.py").write_text("1 / 0\n")
    (recipes / "nets.py").write_text("")
    assert main([*DIGITS, "reweight.module._target_=recipes.nets.Wide"]) == 2
    screen = capsys.readouterr().err
    assert "recipes does not import" in screen and "ZeroDivisionError" in screen
    assert "Traceback" not in screen


def test_an_init_file_is_not_run_for_an_experiment_that_does_not_use_it(recipes: Path) -> None:
    (recipes / "__init__.py").write_text("1 / 0\n")
    assert main(DIGITS) == 0


def test_a_recipe_may_be_called_what_ours_is_called(recipes: Path) -> None:
    (recipes / "reweighting.py").write_text(
        "from mlorun.recipes.reweighting import WeightedClassifier\n\n\n"
        "class Mine(WeightedClassifier):\n    steps = 0\n\n"
        "    def param_callback(self):\n        type(self).steps += 1\n"
    )
    # reweight stays mlorun.recipes.reweighting.Reweight
    assert main([*DIGITS, "classifier._target_=recipes.reweighting.Mine"]) == 0
    assert sys.modules["recipes.reweighting"].Mine.steps == 2
    assert not hasattr(sys.modules["mlorun.recipes.reweighting"], "Mine")


def test_every_recipe_file_may_be_called_what_ours_is_called(recipes: Path) -> None:
    for name in ("classification", "modules", "hyperparameters", "few_shot"):
        (recipes / f"{name}.py").write_text("raise RuntimeError('of the user')\n")
    (recipes / "reweighting.py").write_text("from mlorun.recipes.reweighting import Reweight as Mine\n")
    assert main([*DIGITS, "reweight._target_=recipes.reweighting.Mine"]) == 0


def test_another_working_folder_has_other_recipes(
    recipes: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "recipes").mkdir()
    for folder, number in ((recipes, 1), (other / "recipes", 2)):
        (folder / "mine.py").write_text(f"def number():\n    return {number}\n")
    make_recipes_importable()
    assert locate("recipes.mine.number", "here", ROOTS)() == 1
    monkeypatch.chdir(other)
    make_recipes_importable()
    assert locate("recipes.mine.number", "here", ROOTS)() == 2


def test_an_init_file_that_ends_the_program_is_reported(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (recipes / "__init__.py").write_text("raise SystemExit(3)\n")
    assert main(["check", "experiment=mwn_digits", "classifier._target_=recipes.mine.Mine"]) == 2
    assert "recipes does not import" in capsys.readouterr().err
