"""`mlorun verify` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlorun.cli import main

SMALL = ["experiment=mwn_digits", "classifier.module.sizes=[64,10]", "--points", "1", "--steps", "3"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(empty_folder: Path) -> Path:
    return empty_folder


LAST_LINE = "VERDICT: {}; computed as defined: {} of 1 bounds hold, no call left a trace"


def test_what_is_computed_as_defined_far_from_an_optimum_is_not_called_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify", *SMALL]) == 1
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == LAST_LINE.format("NOT KNOWN", 1)
    assert "\n  classifier: norm of its gradient" in text and "Newton decrement" in text
    assert "why: the lower problem classifier is not solved at this point" in text


def test_a_right_hypergradient_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["experiment=hpo_digits", "--points", "1", "--steps", "10"]
    assert main(["verify", *small]) == 0
    text = capsys.readouterr().out
    assert "tuner <- classifier   Unrolled" in text
    assert text.splitlines()[-1] == LAST_LINE.format("OK", 1)
    assert not list(Path().iterdir()), "verify leaves files"


def test_a_broken_bound_exits_with_1_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *SMALL, "classifier.hypergradient=darts"]) == 1
    text = capsys.readouterr().out
    assert "sees through stop-gradients" in text and "the derivative of its update is" in text
    assert text.splitlines()[-1] == LAST_LINE.format("NOT AS DEFINED", 0)


def test_the_lower_problem_is_solved_again_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    decay = "classifier.optimizer.weight_decay=0.1"
    assert main(["verify", *SMALL, decay, "--resolve-budget", "300"]) == 0
    text = capsys.readouterr().out
    assert "classifier solved again: loss" in text
    assert text.splitlines()[-1] == LAST_LINE.format("DIRECTION ONLY", 1)
    assert "hypergradient against the derivative of the solved program: cosine about" in text


def test_all_estimators_are_compared_and_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert main(["verify", *SMALL, "--all", "--plot", "errors.png"]) == 1, "nothing is solved there"
    text = capsys.readouterr().out
    for name in ("t1t2", "cg", "unrolled", "exact"):
        assert f"\n{name} " in text
    assert Path("errors.png").stat().st_size > 5000


def test_where_nothing_is_exact_no_picture_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    small = ["meta.module.sizes=[1,2,1]", "learner.batch_size=2", "--points", "1", "--steps", "2"]
    assert main(["verify", "experiment=maml_sinusoid", *small, "--plot", "errors.png"]) == 0
    text = capsys.readouterr().out
    assert "no picture" in text and not Path("errors.png").exists()
    assert "t1t2: zero, as it differentiates loss alone" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--al"], "--al"),
        (["--points", "0", "experiment=mwn_digits"], "--points"),
        (["--steps", "many", "experiment=mwn_digits"], "no whole number"),
        (["-m", "experiment=mwn_digits"], "no sweep"),
        (["-x", "experiment=mwn_digits"], "no flag -x"),
        (["--plot", "errors.xyz", "experiment=mwn_digits"], "png"),
        (["--plot", "nowhere/errors.png", "experiment=mwn_digits"], "nowhere/errors.png"),
        (["experiment=mwn_digits", "classifier.hypergradient=forward"], "largest_size: 50"),
        (["--all"], "name one"),
        (["--resolve"], "name one"),
        (["--resolve-budget", "0", "experiment=mwn_digits"], "--resolve-budget"),
        (["experiment=mwn_digitz"], "mwn_digits"),
        (
            ["experiment=mwn_mnist_baseline", "data=digits_long_tailed", "classifier.module=mlp_digits"],
            "differentiates",
        ),
        (["experiment=mwn_digits", "classifier.warmup_steps=100"], "takes no step"),
    ],
)
def test_a_slip_is_one_screen(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
