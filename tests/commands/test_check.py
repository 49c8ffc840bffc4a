"""`mlorun check`: all mistakes together, nothing left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlorun.cli import main

DIGITS = "experiment=mwn_digits"


def test_a_right_config_is_told_so(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", DIGITS]) == 0
    assert "no mistakes found" in capsys.readouterr().out
    assert list(empty_folder.iterdir()) == []


def test_arguments_graph_and_device_are_told_together(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["classifier.optimizer.lr=abc", "device=cuda:99", "+dependencies.u2l={rewieght:[classifier]}"]
    assert main(["check", DIGITS, *overrides]) == 2
    screen = capsys.readouterr().err
    assert screen.count("error:") == 3
    assert "3 faults" in screen
    assert list(empty_folder.iterdir()) == []


def test_an_error_in_a_loss_has_its_place_and_its_problem(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", DIGITS, "classifier.module.sizes=[7,10]"]) == 2
    screen = capsys.readouterr().err
    assert "in the loss of reweight" in screen and "reweighting.py:" in screen and "in training_step" in screen
    assert "shapes cannot be multiplied" in screen
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["classifier.split=trian"], "did you mean train?"),
        (["classifier.problem=classifier", "classifier.hypergradient=t1t2"], "never reads self.reweight"),
        (["classifier.module.sizes=[64,-1]"], "problems.classifier.module"),
        (["data=mnist_long_tailed", "data.root=nowhere"], "nowhere"),
    ],
)
def test_what_only_building_shows_is_told(
    overrides: list[str], said: str, empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", DIGITS, *overrides]) == 2
    screen = capsys.readouterr().err
    assert said in screen
    assert "Traceback" not in screen
