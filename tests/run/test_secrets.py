"""A secret of the environment is used, and is in no file, no name and no screen."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from mlorun.cli import main
from mlorun.config.masked import masked_config
from mlorun.run.folder import RunFolder
from mlorun.run.log import log_to
from mlorun.run.secrets import masked
from tests.sweeps import tiny

VALUE = "wx81-abcd-0042"
RUN = ["experiment=tiny", "logger=console", "checkpoint.every=2"]


@pytest.fixture
def secret(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and a secret in the environment."""
    monkeypatch.setenv("WANDB_API_KEY", VALUE)
    tiny.write(empty_folder)
    return empty_folder


def texts(folder: Path) -> str:
    """Every path and every file below a folder."""
    return "".join(f"{path} {path.read_bytes()!r}" for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("WANDB_API_KEY", True), ("HF_TOKEN", True), ("APIKEY", True), ("aws_secret_access_key", True),
        ("KEYS", True), ("DB_PASSWORD_FILE", True), ("GOOGLE_CREDENTIALS", True),
        ("HOME", False), ("PWD", False), ("TOKENIZERS_PARALLELISM", False), ("KEYBOARD", False),
    ],
)  # fmt: skip
def test_a_variable_is_a_secret_by_its_name(name: str, is_one: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, VALUE)
    assert masked(f"a {VALUE} b") == (f"a ${{oc.env:{name}}} b" if is_one else f"a {VALUE} b")


def test_a_short_value_is_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "12345")
    assert masked("lr=0.12345") == "lr=0.12345"


def test_of_two_secrets_that_overlap_the_longer_is_masked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", VALUE)
    monkeypatch.setenv("B_KEY", f"{VALUE}-more")
    assert masked(f"{VALUE}-more {VALUE}") == "${oc.env:B_KEY} ${oc.env:A_KEY}"


def test_a_masked_config_reads_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", VALUE)
    config = OmegaConf.create({"a": [{"b": f"Bearer {VALUE}"}, 1], "c": "x"})
    text = OmegaConf.to_yaml(masked_config(config))
    assert VALUE not in text
    assert OmegaConf.to_container(OmegaConf.create(text), resolve=True) == OmegaConf.to_container(config)


@pytest.mark.parametrize("typed", ["${oc.env:WANDB_API_KEY}", VALUE], ids=["by reference", "by the shell"])
def test_a_run_and_its_resumption_write_no_secret(typed: str, secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*RUN, f"+constants.token='Bearer {typed}'", f"notes={typed}"]
    assert main(words) == 0
    assert main(["resume", "latest", "engine.train_iters=8"]) == 0
    assert main(["show", *words]) == 0
    assert VALUE not in texts(secret / "runs")
    screens = capsys.readouterr()
    assert VALUE not in screens.out + screens.err
    (run,) = (secret / "runs" / "tiny").glob("2*")
    assert "token: Bearer ${oc.env:WANDB_API_KEY}" in RunFolder(run).config.read_text()


def test_a_run_whose_secret_is_gone_says_so(
    secret: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "notes=${oc.env:WANDB_API_KEY}"]) == 0
    monkeypatch.delenv("WANDB_API_KEY")
    assert main(["resume", "latest", "engine.train_iters=8"]) == 2
    assert "WANDB_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["name=x-${oc.env:WANDB_API_KEY}"], [f"name={VALUE}"], ["run.root=${oc.env:WANDB_API_KEY}/runs"],
        ["-m", "seed=0,1", "name=${oc.env:WANDB_API_KEY}"], ["-m", "seed=0,1", f"hydra.sweep.dir=a/{VALUE}"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_a_secret_is_no_name_of_a_folder(words: list[str], secret: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(secret.rglob("*"))
    assert main(["experiment=tiny", *words]) == 2
    screen = capsys.readouterr().err
    assert "a secret would become the name of a folder" in screen
    assert VALUE not in screen
    assert [path for path in sorted(secret.rglob("*")) if "__pycache__" not in str(path)] == before
    if words[0] != "-m":
        assert main(["check", "experiment=tiny", *words]) == 2
        assert "a secret would become the name of a folder" in capsys.readouterr().err


def test_a_sweep_records_no_secret_and_goes_on(secret: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=tiny", f"+constants.token={VALUE}", "+one.ending=fine,raise", "hydra.sweep.dir=sweep"]
    assert main(["-m", *words]) == 3
    (secret / "mended").touch()
    assert main(["resume", "sweep", "--failed"]) == 0
    screens = capfd.readouterr()
    assert VALUE not in texts(secret / "sweep") + screens.out + screens.err


def test_the_log_masks_what_a_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", VALUE)
    with log_to(tmp_path / "log.txt"):
        logging.getLogger("mlorun.recipe").info("logged in with %s", VALUE)
    assert (tmp_path / "log.txt").read_text().endswith("logged in with ${oc.env:HF_TOKEN}\n")
