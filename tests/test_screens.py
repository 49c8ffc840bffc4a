"""What a person sees after the commonest mistakes, to the letter.

tests/screens/NAME.txt has a command as it is typed, what it prints to standard error, and its exit code. After a
change of words `python -m tests.test_screens` writes every screen anew; read the difference before it is committed.
A new screen is a file with its first line, `$ mlorun ...`, written in the same way. A command runs in an empty folder,
or in one with the FILES of its name.
"""

from __future__ import annotations

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
FILES = {
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
# the twenty of docs/mistakes.md, with what a person meant to do
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
}


def page() -> str:
    """docs/mistakes.md."""
    parts = [
        "# Twenty mistakes",
        "What is typed, and the screen that it gets. Nothing is run, nothing is left behind. This page is written by "
        "`python -m tests.test_screens`,\nand checked with the tests.",
    ]
    for name, title in MISTAKES.items():
        files = "".join(f"`{path}`:\n\n```\n{text.rstrip()}\n```\n\n" for path, text in FILES.get(name, {}).items())
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
    assert len(MISTAKES) == 20
    assert PAGE.read_text(encoding="utf-8") == page(), "python -m tests.test_screens writes it anew"


if __name__ == "__main__":
    again = [sys.executable, "-m", "pytest", "-n0", f"{__file__}"]
    sys.exit(subprocess.run(again, env={**os.environ, REWRITE: "1"}, check=False).returncode)
