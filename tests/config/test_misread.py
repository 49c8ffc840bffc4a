"""Words that Hydra would misread or pass over, and keys that nobody reads: each gets the line to type."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlorun.cli import main
from mlorun.config.compose import composed
from mlorun.errors import ConfigError, faults_in

DIGITS = "experiment=mwn_digits"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["+experiment=mwn_digits"], "experiment=mwn_digits"),
        ([DIGITS, "seed=0..2"], "seed=0,1,2"),
        ([DIGITS, "seed=0..99"], "'seed=range(0,100)'"),
        ([DIGITS, "--lr", "0.1"], "classifier.optimizer.lr=0.1"),
        ([DIGITS, "--seed=3"], "seed=3"),
        (["-cn", "experiment/mwn_digits"], "mlorun experiment=mwn_digits"),
        ([DIGITS, "dependencies={}"], "'~dependencies.u2l.reweight'"),
        ([DIGITS, "+tag=x"], "+constants.tag="),
        ([DIGITS, "+resume=RUN"], "mlorun resume RUN"),
        ([DIGITS, "+lr=0.1"], "classifier.optimizer.lr=0.1"),
        ([DIGITS, "dependencies={reweight:[classifier]}"], "dependencies.u2l={reweight:[classifier]}"),
        ([DIGITS, "classifier.scheduler=null"], "classifier.scheduler=none"),
        (["classifier.optimizer.lr=0.1"], "mlorun experiment=NAME classifier.optimizer.lr=0.1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("verb", [[], ["check"]], ids=["run", "check"])
def test_a_word_that_would_be_misread_gets_the_line_to_type(
    words: list[str], line: str, verb: list[str], empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*verb, *words]) == 2
    assert line in capsys.readouterr().err
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("seed=1e5", "fix    seed=100000"), ("seed=1.5", "fix    seed=2: a whole number"),
        ("seed=e", "error: seed has the wrong type"), ("seed=1e999", "error: seed has the wrong type"),
        (f"experiment={'a' * 300}", "error: experiment has no option"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_what_is_no_number_and_what_no_file_can_be_called_is_one_screen(
    word: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", DIGITS, word]) == 2
    assert line in capsys.readouterr().err


def test_values_of_an_experiment_of_its_own_stand_under_constants() -> None:
    assert composed([DIGITS, "+constants.half=50", "classifier.batch_size=${constants.half}"])


def test_every_mistyped_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        composed([DIGITS, "sed=1", "classifier.optimizer.lrr=1", "engine.train_iter=3"])
    assert [fault.where for fault in faults_in(caught.value)] == [
        "sed=1",
        "classifier.optimizer.lrr=1",
        "engine.train_iter=3",
    ]


def test_problems_that_are_a_text_are_one_screen(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path("configs/experiment")
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("# @package _global_\nname: mine\nproblems: ${name}\n")
    assert main(["check", "experiment=mine"]) == 2
    assert "problems is no mapping" in capsys.readouterr().err


def test_more_threads_than_a_machine_has_are_one_screen(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DIGITS, "threads=1000000000"]) == 2
    assert "threads must be less than 4097" in capsys.readouterr().err
