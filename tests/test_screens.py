"""What a person sees after the commonest mistakes, to the letter.

tests/screens/NAME.txt has a command as it is typed, what it prints to standard error, and its exit code. After a
change of words `python -m tests.test_screens` writes every screen anew; read the difference before it is committed.
A new screen is a file with its first line, `$ mlorun ...`, written in the same way. A command runs in an empty folder,
or in one with the FILES of its name.
"""

from __future__ import annotations

import difflib
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch

from mlorun.cli import main
from mlorun.config.locations import configs_dir, groups, options

SCREENS = Path(__file__).resolve().parent / "screens"
NAMES = sorted(path.stem for path in SCREENS.glob("*.txt"))
REWRITE = "MLORUN_TESTS_REWRITE_SCREENS"  # set by python -m tests.test_screens

MINE = "configs/experiment/mine.yaml"
HEAD = "# @package _global_\ndefaults: [mwn_digits, _self_]\nname: mine\n"
RECIPE = """import torch.nn.functional as F
from mlorun import Problem
from mlorun.recipes.classification import Classifier


class Weighted(Classifier):
    def training_step(self, batch):
        inputs, labels = batch
        losses = F.cross_entropy(self(inputs), labels, reduction="none")[:, None]
        return (self.reweight(losses.detach()) * losses).mean()


class Reweight(Problem):
    def training_step(self, batch):
        inputs, labels = batch
        return F.cross_entropy(self.classifier(inputs), labels)
"""
PROGRAM = f"{HEAD}problems:\n  reweight: {{_target_: recipes.mine.Reweight}}\n"
PROGRAM += "  classifier: {_target_: recipes.mine.Weighted}\n"
LOSS = "        return (self.reweight(losses.detach()) * losses).mean()\n"
UPPER = "        return F.cross_entropy(self.classifier(inputs), labels)\n"


def program(*changes: tuple[str, str], **more: str) -> dict[str, str]:
    """The files of a program with texts of its recipe changed; further files by their names below configs."""
    recipe = RECIPE
    for old, new in changes:
        assert old in recipe
        recipe = recipe.replace(old, new)
    return {"recipes/mine.py": recipe, MINE: PROGRAM} | {f"configs/{name}.yaml": text for name, text in more.items()}


OWN_MODULE = "\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
FILES = {
    "override_too_early": {
        MINE: "# @package _global_\ndefaults:\n  - override /data: digits_balanced\n"
        "  - /problem@problems.classifier: classifier\n  - _self_\nname: mine\n"
    },
    "file_with_another_ending": {"configs/experiment/mine.yml": HEAD},
    "byte_order_mark": {MINE: f"\ufeff{HEAD}"},
    "no_package_line": {MINE: HEAD.partition("\n")[2]},
    "data_without_override": {
        MINE: "# @package _global_\ndefaults:\n  - /data: digits_balanced\n"
        "  - /problem@problems.classifier: classifier\n  - _self_\nname: mine\n"
    },
    "peer_read_without_gradient": program(
        (LOSS, "        with torch.no_grad():\n            weights = self.reweight(losses)\n"),
        (
            "            weights = self.reweight(losses)\n",
            "            weights = self.reweight(losses)\n        return (weights * losses).mean()\n",
        ),
        ("import torch.nn", "import torch\nimport torch.nn"),
    ),
    "metric_that_is_text": program(
        (UPPER, '        return {"loss": F.cross_entropy(self.classifier(inputs), labels), "phase": "upper"}\n')
    ),
    "own_optimizer_without_partial": {
        **program(
            (UPPER, f"{UPPER}\n\nclass Sgd(SGD): ...\n"),
            ("from mlorun import P", "from torch.optim import SGD\nfrom mlorun import P"),
        ),
        "configs/optimizer/mine.yaml": "_target_: recipes.mine.Sgd\nlr: 0.1\n",
        MINE: PROGRAM.replace(
            "[mwn_digits, _self_]", "[mwn_digits, _self_, override /optimizer@problems.classifier.optimizer: mine]"
        ),
    },
    "own_class_with_keys_of_an_option": {
        **program(
            (UPPER, f"{UPPER}{OWN_MODULE}        self.layer = nn.Linear(1, 1)\n"),
            ("from mlorun import P", "from torch import nn\nfrom mlorun import P"),
        ),
        MINE: PROGRAM.replace("Reweight}", "Reweight, module: {_target_: recipes.mine.Net}}"),
    },
    "lazy_module": {
        **program(
            (UPPER, f"{UPPER}{OWN_MODULE}        self.layer = nn.LazyLinear(10)\n"),
            ("from mlorun import P", "from torch import nn\nfrom mlorun import P"),
        ),
        "configs/module/mine.yaml": "_target_: recipes.mine.Net\n",
        MINE: PROGRAM.replace(
            "[mwn_digits, _self_]", "[mwn_digits, _self_, override /module@problems.classifier.module: mine]"
        ),
    },
    "class_without_training_step": program(
        ("class Reweight(Problem):\n    def training_step", "class Reweight(Problem):\n    def train_step")
    ),
    "method_with_other_arguments": program(
        (
            "class Reweight(Problem):\n    def training_step(self, batch)",
            "class Reweight(Problem):\n    def training_step(self)",
        )
    ),
    "init_without_that_of_problem": program(
        (
            "class Reweight(Problem):\n",
            "class Reweight(Problem):\n    def __init__(self, **kwargs):\n        self.count = 0\n\n",
        )
    ),
    "syntax_error_in_a_recipe": program((UPPER, UPPER.replace("labels)", "labels"))),
    "data_that_is_a_list": {
        "recipes/mine.py": "def data():\n    return [1, 2]\n",
        "configs/data/mine.yaml": "_target_: recipes.mine.data\n",
        MINE: HEAD.replace("_self_]", "_self_, override /data: mine]"),
    },
    "data_builder_that_breaks": {
        "recipes/mine.py": 'def data():\n    return open("data/cars.csv")\n',
        "configs/data/mine.yaml": "_target_: recipes.mine.data\n",
        MINE: HEAD.replace("_self_]", "_self_, override /data: mine]"),
    },
    "broken_yaml": {MINE: f"{HEAD}problems:\n  classifier: {{batch_size: 50\nseed: 1\n"},
    "mistyped_key_in_my_experiment": {MINE: f"{HEAD}engine: {{train_iter: 5}}\n"},
    "mistyped_option_in_my_experiment": {
        MINE: "# @package _global_\ndefaults:\n  - /problem@problems.classifier: clasifier\nname: mine\n"
    },
    "class_that_is_not_there": {
        "recipes/mine.py": "from mlorun import Problem\n\n\nclass Classifier(Problem): ...\n",
        MINE: f"{HEAD}problems: {{classifier: {{_target_: recipes.mine.Clasifier}}}}\n",
    },
}


PAGE = SCREENS.parents[1] / "docs" / "mistakes.md"
# those of docs/mistakes.md, with what is wrong
MISTAKES = {
    "no_experiment_but_a_problem": "An experiment is forgotten",
    "unknown_experiment": "An experiment is mistyped",
    "mistyped_key_of_an_optimizer": "A key is mistyped",
    "mistyped_key_in_my_experiment": "A key in a file is mistyped",
    "key_one_level_too_high": "A key stands one level too high",
    "several_mistakes_at_once": "Several mistakes",
    "wrong_type": "A value of the wrong type",
    "value_out_of_range": "A value out of range",
    "values_of_a_sweep_without_m": "A sweep without -m",
    "unknown_flag": "A flag in place of a key",
    "override_without_a_value": "A word without a value",
    "group_without_a_problem": "An option without its problem",
    "unknown_option": "An option that is not there",
    "broken_yaml": "A file that is no YAML",
    "class_that_is_not_there": "A class that is not there",
    "no_hypergradient": "Nobody says how to differentiate",
    "dependency_on_an_unknown_problem": "A dependency on a problem that is not there",
    "cycle_of_dependencies": "Dependencies in a circle",
    "edge_that_no_loss_reads": "A dependency that no loss reads",
    "batch_larger_than_its_split": "A batch larger than its data",
    "unknown_key_at_the_root": "A key of one's own at the root",
    "no_package_line": "An experiment without its first line",
    "experiment_added": "An experiment with a +",
    "config_name": "An experiment as Hydra's config",
    "data_without_override": "A choice made twice",
    "override_too_early": "An override too early",
    "dashes": "An override with dashes",
    "range_with_dots": "A range with dots",
    "launcher_not_installed": "A launcher that is not installed",
    "sweep_over_nothing": "A sweep over nothing",
    "run_as_a_verb": "A verb that is not needed",
    "epochs": "A key of another program",
    "name_with_a_slash": "A name that no folder can have",
    "root_that_cannot_be_written": "A folder that cannot be written",
    "evaluation_split_as_text": "A text where a list is meant",
    "unknown_evaluation_split": "A split that is not there",
    "whole_number_as_float": "A count that is no whole number",
    "unknown_metric_of_checkpoints": "A metric that is not there",
    "dependencies_without_direction": "Dependencies without a direction",
    "peer_read_without_gradient": "A problem read under no_grad",
    "metric_that_is_text": "A metric that is text",
    "class_without_training_step": "A method by another name",
    "method_with_other_arguments": "A method with other arguments",
    "init_without_that_of_problem": "An __init__ that forgets its base",
    "lazy_module": "A lazy module",
    "own_class_with_keys_of_an_option": "A class in place of an option",
    "own_optimizer_without_partial": "An optimizer of one's own",
    "data_that_is_a_list": "A data builder that returns a list",
    "data_builder_that_breaks": "A data builder that breaks",
    "syntax_error_in_a_recipe": "A recipe that is no Python",
    "file_with_another_ending": "A file with another ending",
    "byte_order_mark": "A file that begins with a byte order mark",
}


def shown(text: str) -> str:
    """A file; of one that is RECIPE with changes, the lines that are new, and what stands before them."""
    lines, known = text.splitlines(), RECIPE.splitlines()
    new = {
        place
        for kind, _, _, first, last in difflib.SequenceMatcher(None, known, lines, autojunk=False).get_opcodes()
        if kind != "equal"
        for place in range(first, last)
    }
    if len(new) > len(lines) / 2 or not new:
        return text
    around = new | {place - 1 for place in new}
    parts = ["..." if place not in around else line for place, line in enumerate(lines)]
    return "\n".join(part for place, part in enumerate(parts) if part != "..." or parts[place - 1 : place] != ["..."])


def page() -> str:
    """docs/mistakes.md."""
    parts = [
        "# Mistakes and their screens",
        "What is typed, and the screen that it gets. Nothing is run, nothing is left behind. This page is written by "
        "`python -m tests.test_screens`,\nand checked with the tests. Where a recipe is that of "
        "[Your own experiment](../README.md#your-own-experiment), its new lines are shown.",
    ]
    for name, title in MISTAKES.items():
        files = "".join(
            f"`{path}`:\n\n```\n{shown(text).rstrip()}\n```\n\n" for path, text in FILES.get(name, {}).items()
        )
        text = (SCREENS / f"{name}.txt").read_text(encoding="utf-8").rstrip()
        parts.append(f"## {title}\n\n{files}```\n{text}\n```")
    return "\n\n".join(parts) + "\n"


def screen(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The text of a screen's file."""
    code = main(shlex.split(command)[1:])
    printed = capsys.readouterr()
    assert printed.out == "", "a mistake prints to standard error alone"
    assert "the full traceback is in" not in printed.err, "a mistake is foreseen"
    return f"$ {command}\n{plain(printed.err)}exit code {code}\n"


def plain(text: str) -> str:
    """Without what differs between machines, or with every new option of a group."""
    text = text.replace(str(Path.cwd()), "FOLDER").replace(str(configs_dir()), "MLORUN/configs")
    text = text.replace(torch.__version__, "VERSION")
    for group in groups():
        names = ", ".join(options(group))
        if ", " in names:
            text = text.replace(names, f"every {group}")
    return text


@pytest.fixture(autouse=True)
def _a_machine_with_a_cpu_alone(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home in (torch.cuda, torch.backends.mps):
        monkeypatch.setattr(
            home, "is_available", cache(lambda: False)
        )  # cached as torch's own is, which torch relies on
    for variable in ("MLORUN_DATA", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_gets_the_screen_that_was_agreed_on(
    name: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = SCREENS / f"{name}.txt"
    agreed = file.read_text(encoding="utf-8")
    for path, text in FILES.get(name, {}).items():
        (empty_folder / path).parent.mkdir(parents=True, exist_ok=True)
        (empty_folder / path).write_text(text)
    got = screen(agreed.splitlines()[0].removeprefix("$ "), capsys)
    if os.environ.get(REWRITE):
        file.write_text(got, encoding="utf-8")
    else:
        assert got == agreed, "if the new screen is the better one: python -m tests.test_screens"
    left = {str(path.relative_to(empty_folder)) for path in empty_folder.rglob("*") if path.is_file()}
    assert {path for path in left if "__pycache__" not in path} == set(FILES.get(name, {})), "a mistake leaves nothing"


def test_every_screen_is_short_and_no_file_is_left_over() -> None:
    assert FILES.keys() <= set(NAMES)
    for name in NAMES:
        assert len((SCREENS / f"{name}.txt").read_text(encoding="utf-8").splitlines()) <= 25, name


def test_the_page_of_mistakes_shows_the_screens_as_they_are() -> None:
    if os.environ.get(REWRITE):
        PAGE.write_text(page(), encoding="utf-8")
    assert MISTAKES.keys() <= set(NAMES)
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.test_screens writes it anew"


if __name__ == "__main__":
    again = [sys.executable, "-m", "pytest", "-n0", f"{__file__}"]
    sys.exit(subprocess.run(again, env={**os.environ, REWRITE: "1"}, check=False).returncode)
