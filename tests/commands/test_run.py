"""Commands without a verb: what reaches Hydra, what comes back, and how a command ends."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlorun import __version__
from mlorun.cli import main
from mlorun.commands import show

pytestmark = pytest.mark.usefixtures("empty_folder")
ROOT = Path(__file__).resolve().parent.parent.parent
SHORT = ["experiment=mwn_digits", "engine.train_iters=2", "threads=1", "logger=jsonl"]


def test_a_reference_in_an_override_is_one_into_the_config() -> None:
    assert main([*SHORT, "seed=3", "data.seed=${seed}"]) == 0
    run = json.loads(Path("runs/mwn_digits/latest/run.json").read_text())
    assert run["overrides"][-1] == "data.seed=${seed}"
    assert "seed: 3" in Path("runs/mwn_digits/latest/config.yaml").read_text()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["experiment=mwn_digits", "data.seed=${sed}"], "leads nowhere"),
        (["experiment=mwn_digits", "seed"], "cannot be read"),
        (["experiment=mwn_digits", "seed=0,1"], "mlorun -m"),
        (["--multrun", "experiment=mwn_digits"], "did you mean --multirun?"),
        (["--cfg", "jb", "experiment=mwn_digits"], "invalid choice"),
        (["-m", "experiment=mwn_digits", "classifier.optimizer.lrr=1,2"], "did you mean lr?"),
    ],
)
def test_a_wrong_command_gets_one_screen_and_leaves_nothing(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert main(args) == 2
    out, screen = capsys.readouterr()
    assert (out, screen.count("error: "), "Traceback" in screen) == ("", 1, False)
    assert said in screen
    assert list(empty_folder.iterdir()) == []


def test_flags_and_overrides_mix_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    args = [
        "--cfg",
        "job",
        "experiment=mwn_digits",
        "-p",
        "problems.classifier.hypergradient",
        "classifier.hypergradient=cg",
    ]
    assert main(args) == 0
    assert "ConjugateGradient" in capsys.readouterr().out
    assert main(["--info", "searchpath", "experiment=mwn_digits"]) == 0
    assert "provider" in capsys.readouterr().out.lower()


def test_a_single_run_is_no_sweep() -> None:
    assert main(SHORT) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_nothing_of_the_process_is_changed_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["somebody", "else"])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    main(["experiment=mwn_digit"])
    main(["--info", "config", "experiment=mwn_digits"])
    assert sys.argv == ["somebody", "else"]
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert (root.level, list(root.handlers)) == before


def test_the_version_is_mlorun_s_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mlorun {__version__}\n"


def test_a_mistake_of_ours_is_one_line_and_a_file_with_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: list[str]) -> int:
        raise LookupError("nobody foresaw this")

    monkeypatch.setattr(show, "main", fail)
    assert main(["show"]) == 1
    screen = capsys.readouterr().err
    assert "LookupError: nobody foresaw this" in screen
    assert "Traceback" not in screen
    file = Path(screen.split("traceback is in ")[1].strip())
    assert "in fail" in file.read_text()
    file.unlink()


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(args: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "main", stop)
    assert main(["show"]) == 130


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from mlorun.cli import main; sys.exit(main(['show', 'experiment=mwn_digits']))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")


def test_a_run_goes_on_when_the_reader_of_its_output_goes_away(empty_folder: Path) -> None:
    words = ["experiment=mwn_digits", "engine.train_iters=3", "engine.log_every=1", "threads=1"]
    code = f"import sys; from mlorun.cli import main; sys.exit(main({words!r}))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=empty_folder) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (0, b"")
    (result,) = empty_folder.glob("runs/mwn_digits/2*/result.json")
    assert '"status": "finished"' in result.read_text()
