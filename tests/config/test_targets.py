"""What a _target_ may name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlorun.config.places import ROOTS
from mlorun.config.recipes import make_recipes_importable
from mlorun.config.targets import locate
from mlorun.errors import ConfigError


def fault_of(target: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        locate(target, "problems.a.module", ROOTS)
    assert caught.value.where == "problems.a.module._target_"
    return caught.value


@pytest.mark.parametrize(
    "target", ["torch.optim.SGD", "torch.nn.functional.relu", "torch.tanh", "torchvision.models.resnet18",
               "mlorun.recipes.modules.mlp", "torch.nn.Module.float"]
)  # fmt: skip
def test_a_class_a_function_and_a_method_below_a_trusted_package_are_found(target: str) -> None:
    assert callable(locate(target, "here", ROOTS))


@pytest.mark.parametrize(
    "target", ["os.system", "builtins.eval", "torch.os.system", "torch.optim.optimizer.defaultdict", "hydra.utils.call"]
)  # fmt: skip
def test_nothing_else_is_trusted_whichever_way_it_is_reached(target: str) -> None:
    assert "not a trusted package" in fault_of(target).message


def test_an_untrusted_package_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "untrusted_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert "untrusted_package is not a trusted package" in fault_of("untrusted_package.main").message
    assert "untrusted_package" not in sys.modules


@pytest.mark.parametrize(
    ("target", "parent", "nearest"),
    [
        ("torch.optim.SDG", "torch.optim", "SGD"),
        ("torch.optm.SGD", "torch", "optim"),
        ("mlorun.recipes.reweigting.Reweight", "mlorun.recipes", "reweighting"),
        ("mlorun.recipes.reweighting.Rewieght", "mlorun.recipes.reweighting", "Reweight"),
        ("mlorun.hypergradient.solvers.neumann.Neuman", "mlorun.hypergradient.solvers.neumann", "Neumann"),
    ],
)
def test_a_mistyped_target_gets_the_nearest_name_where_it_goes_wrong(target: str, parent: str, nearest: str) -> None:
    fault = fault_of(target)
    assert fault.message.startswith(f"{parent} has no ")
    assert f"did you mean {nearest}?" in (fault.fix or "")


def test_a_mistyped_package_gets_the_nearest_trusted_one() -> None:
    assert "did you mean torch?" in (fault_of("torhc.optim.SGD").fix or "")


@pytest.mark.parametrize("target", ["torch.optim", "torch.float32", "torch.pi"])
def test_what_cannot_be_called_is_refused(target: str) -> None:
    assert "not a class or function" in fault_of(target).message


@pytest.mark.parametrize("target", ["torch..SGD", "", 3, None, "torch.optim.SGD()"])
def test_what_is_no_dotted_name_is_refused(target: object) -> None:
    assert "dotted name" in fault_of(target).message


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("import no_such_package", "no_such_package"),
        ("class Broken(:", "line 1"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_recipe_that_does_not_import_is_told_apart_from_one_that_is_not_there(
    empty_folder: Path, source: str, seen: str
) -> None:
    (empty_folder / "recipes").mkdir()
    (empty_folder / "recipes" / "broken.py").write_text(source + "\n")
    make_recipes_importable()
    fault = fault_of("recipes.broken.Problem")
    assert fault.message == "recipes.broken does not import"
    assert seen in (fault.seen or "")


def test_the_trusted_packages_are_few() -> None:
    assert ROOTS == ("torch", "torchvision", "mlorun", "recipes")
