"""Sweeps as Hydra composes them: their folders, refusals, launchers of others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.plugins import Plugins

from mlorun.cli import main
from mlorun.commands.sweep import HydraSweep, TakeOver, following
from mlorun.sweeps import processes
from mlorun.sweeps.jobs import jobs_in

pytestmark = pytest.mark.usefixtures("empty_folder")
DIGITS = "experiment=mwn_digits"
RUN = [DIGITS, "engine.train_iters=2", "logger=jsonl"]


def sweep_folder() -> Path:
    (folder,) = Path("sweeps/mwn_digits").iterdir()
    return folder


def test_a_sweep_in_which_every_job_is_wrong_is_a_wrong_command(
    capsys: pytest.CaptureFixture[str], empty_folder: Path
) -> None:
    assert main(["-m", DIGITS, "classifier.optimizer.lr=a,b"]) == 2
    assert capsys.readouterr().err.count("wrong type") == 2, "each with its own value"
    assert list(empty_folder.iterdir()) == []


def test_a_sweep_over_experiments_is_filed_under_several_and_takes_short_forms() -> None:
    args = ["-m", "experiment=mwn_digits,mwn_mnist_baseline", "classifier.module=mlp_digits", "classifier.batch_size=7"]
    assert main([*args, "data=digits_long_tailed", "engine.train_iters=2", "logger=jsonl"]) == 0
    (folder,) = Path("sweeps/several").iterdir()
    jobs = jobs_in(folder)
    assert [job.values["experiment"] for job in jobs] == ["mwn_digits", "mwn_mnist_baseline"]
    assert all(job.values["classifier.batch_size"] == "7" for job in jobs)


def test_hydras_own_settings_keep_working() -> None:
    args = [*RUN, "seed=0,1", "hydra.mode=MULTIRUN", "hydra.sweep.dir=elsewhere", "hydra/launcher=basic"]
    assert main(args) == 0
    assert len(jobs_in(Path("elsewhere"))) == 2


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_sweep_into_a_folder_that_holds_something_is_refused_and_touches_nothing(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = empty_folder / "mine"
    for name in ("0/job.json", "0/notes.txt", "multirun.yaml", "job.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    (folder / "empty").mkdir()
    before = everything(folder)
    assert main([DIGITS, "-m", "seed=0,1", "hydra.sweep.dir=mine"]) == 2
    assert "must be new or empty" in capsys.readouterr().err
    assert everything(folder) == before
    assert (folder / "empty").is_dir()


def test_a_refused_sweep_removes_what_it_made_and_nothing_that_came_meanwhile(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "mine").mkdir()
    start = processes.start

    def start_and_add(order: processes.Order) -> processes.Running:
        (empty_folder / "mine" / "7").mkdir(exist_ok=True)
        (empty_folder / "mine" / "7" / "notes.txt").write_text("of somebody else")
        return start(order)

    monkeypatch.setattr(processes, "start", start_and_add)
    assert main([DIGITS, "-m", "seed=0,1", "hydra.sweep.dir=mine", "classifier.batch_size=-1"]) == 2
    assert everything(empty_folder / "mine") == {"7/notes.txt": b"of somebody else"}


@pytest.mark.parametrize("name", ["../../x", "a/b", ".hidden", "a\x1b[31m"])
def test_a_sweep_stays_in_its_folder(empty_folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([DIGITS, "-m", "seed=0,1", f"name='{name}'"]) == 2
    assert "name becomes a folder" in capsys.readouterr().err
    assert list(empty_folder.rglob("*")) == []


def test_a_sweep_with_runs_in_it_is_never_discarded(empty_folder: Path) -> None:
    run = empty_folder / "sweep" / "0" / "run.json"
    run.parent.mkdir(parents=True)
    run.write_text("{}")
    (run.parent / "job.json").write_text("{}")
    with following():
        TakeOver.folder = run.parent.parent
        HydraSweep().discard()
    assert (run.parent / "job.json").exists()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> str:
    """The override that chooses a launcher of somebody else's, which runs jobs where it is."""
    name = "hydra_plugins.of_a_test"
    launcher = type("Foreign", (BasicLauncher,), {"__module__": name})
    package, module = ModuleType("hydra_plugins"), ModuleType(name)
    package.of_a_test, module.Foreign = module, launcher  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hydra_plugins", package)
    monkeypatch.setitem(sys.modules, name, module)
    Plugins.instance().register(launcher)
    return f"hydra.launcher._target_={name}.Foreign"


def test_a_launcher_of_somebody_else_runs_the_jobs_and_the_table_is_ours(
    foreign: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", *RUN, foreign, "seed=0,1", "classifier.batch_size=50,-1"]) == 3
    (folder,) = Path("sweeps/mwn_digits").iterdir()
    jobs = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [job["status"] for job in jobs] == ["finished", "refused", "finished", "refused"]
    screen = capsys.readouterr()
    assert "2 finished, 2 refused" in screen.out
    assert screen.err.count("batch_size must be at least 1") == 2
    assert main(["resume", str(folder), "--failed"]) == 3


def test_a_sweep_by_somebody_elses_launcher_in_which_nothing_can_run_leaves_nothing(
    foreign: str, empty_folder: Path
) -> None:
    assert main(["-m", *RUN, foreign, "classifier.batch_size=0,-1"]) == 2
    assert list(empty_folder.iterdir()) == []


def test_jobs_have_their_numbers_for_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", *RUN, "seed=0,1", "hydra.sweep.subdir=${seed}"]) == 2
    assert "the folder of a job is its number" in capsys.readouterr().err
