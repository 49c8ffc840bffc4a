"""The command line as a person meets it: help, verbs, one screen for each mistake and nothing left behind, sweeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlorun.cli import VERBS, main
from mlorun.config.locations import PRIMARY_DIR, configs_dir
from mlorun.config.locations import options as options_of


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


RUN = ["experiment=mwn_digits", "engine.train_iters=4", "threads=1"]


def test_help_shows_commands_worth_copying(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["experiment=mwn_digits", "--help"]):
        assert main(words) == 0
        assert capsys.readouterr().out.count("mlorun experiment=mwn_digits") >= 2


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"mlorun {verb}" in said and "Three to start with" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["experiment=mwn_digits", "classifier.hypergradient=exact"], "classifier has 7510 parameters"),
        (["experiment=mwn_digits", "classifier.hypergradient=forward"], "largest_size: 50"),
        (
            ["experiment=mwn_digits", "classifier.hypergradient=cg", "classifier.hypergradient.solve.iterations=-3"],
            "problems.classifier.hypergradient.solve.iterations",
        ),
        (
            ["experiment=mwn_digits", "classifier.hypergradient=darts", "classifier.hypergradient.radius=1"],
            "did you mean cross.radius?",
        ),
        (["shwo"], "did you mean show"),
        (["experiment=mwn_digit"], "did you mean mwn_digits"),
        (["experiment=mwn_digits", "classifier.hypergradient=neuman"], "did you mean neumann"),
        (["experiment=mwn_digits", "classifier.optimizer=sdg"], "did you mean sgd"),
        (["experiment=mwn_digits", "engine.train_iter=3"], "train_iters"),
        (["experiment=mwn_digits", "classifer.optimizer.lr=3"], "classifier"),
        (["experiment=mwn_digits", "classifier.optimizer.lrr=3"], "did you mean lr"),
        (["experiment=mwn_digits", "+classifier.module.siezs=3"], "did you mean sizes"),
        (["experiment=mwn_digits", "classifier.batch_size=many"], "problems.classifier.batch_size"),
        (["experiment=mwn_digits", "classifier.optimizer.lr=fast"], "problems.classifier.optimizer.lr"),
        (["experiment=mwn_digits", "classifier.optimizer.lr=-1"], "problems.classifier.optimizer"),
        (["experiment=mwn_digits", "classifier.split=trian"], "did you mean train"),
        (["experiment=mwn_digits", "classifier.batch_size=100000"], "larger than its split"),
        (["experiment=mwn_digits", "device=cuda:77"], "device"),
        (["experiment=mwn_digits", "device=gpu"], "not a device"),
        (["experiment=mwn_digits", "precision=fp8"], "did you mean fp"),
        (["experiment=mwn_digits", "dependencies.u2l={rewieght:[classifier]}"], "did you mean reweight"),
        (["experiment=mwn_digits", "+dependencies.l2u={classifier:[reweight],reweight:[classifier]}"], "cycle"),
        (["experiment=mwn_mnist", "data.root=nowhere"], "mwn_digits needs no files"),
        (["experiment=mwn_digits", "seed=[1"], "seed=[1"),
        (["seed=3"], "experiment"),
    ],
)
def test_a_mistake_gets_one_screen_and_leaves_nothing(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert told in said.err
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err + said.out
    assert said.out == ""
    assert not list(Path().iterdir())


def test_broken_yaml_is_told_by_file_line_and_column(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("configs/experiment/broken.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\nname: [one,\nseed: 1\n")
    assert main(["experiment=broken"]) == 2
    assert "broken.yaml, line 4, column" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_an_edge_that_no_loss_reads_is_refused_before_there_is_a_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    plain = "problems.classifier._target_=mlorun.recipes.classification.Classifier"
    assert main([*RUN, plain]) == 2
    assert "Classifier.training_step never reads self.reweight" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_recipe_that_fails_ends_with_1_and_the_traceback_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "classifier.module.sizes=[63,10]"]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    folder = Path("runs/mwn_digits/latest")
    assert "Traceback" in (folder / "log.txt").read_text()
    assert json.loads((folder / "result.json").read_text())["exit_code"] == 1
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"


def test_a_loss_that_is_not_finite_ends_with_4(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "classifier.optimizer.lr=1e30"]) == 4
    assert "classifier.gradient_clip" in capsys.readouterr().err
    assert json.loads(Path("runs/mwn_digits/latest/result.json").read_text())["status"] == "nonfinite"


def test_the_users_own_configs_and_recipes_come_first(capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipes").mkdir()
    Path("recipes/mine.py").write_text(
        "from mlorun.recipes.reweighting import WeightedClassifier\n"
        "class Mine(WeightedClassifier):\n"
        "    def __init__(self, *, power: float, **problem):\n"
        "        super().__init__(**problem)\n"
        "        self.power = power\n"
    )
    experiment = Path("configs/experiment/mine.yaml")
    experiment.parent.mkdir(parents=True)
    experiment.write_text(
        "# @package _global_\n# about: of my own\ndefaults: [mwn_digits, _self_]\nname: mine\n"
        "problems: {classifier: {_target_: recipes.mine.Mine, power: 2.0}}\n"
    )
    assert main(["experiment=mine", "engine.train_iters=4", "classifier.power=3"]) == 0
    assert main(["experiment=mine", "engine.train_iters=4", "classifier.power=much"]) == 2
    capsys.readouterr()
    assert main(["ls", "experiment"]) == 0
    assert "of my own" in capsys.readouterr().out


def test_verbs_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    assert main(["ls", "hypergradient"]) == 0
    assert "arXiv:1911.02590" in capsys.readouterr().out.replace("\n", "")
    assert main(["show", "experiment=mwn_mnist"]) == 0
    assert "lr: 1.0e-05" in capsys.readouterr().out
    assert main(["check", "experiment=mwn_digits"]) == 0
    assert main(["graph", "experiment=mwn_digits", "classifier.unroll_steps=3"]) == 0
    assert "classifier x3, reweight" in capsys.readouterr().out


def test_check_tells_every_mistake_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = ["classifier.optimizer.lr=fast", "reweight.module.hidden=wide", "engine.log_every=0"]
    assert main(["check", "experiment=mwn_digits", *wrong]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 3


def test_hydras_own_flags_keep_working_in_any_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "job", "experiment=mwn_digits"]) == 0
    assert "name: mwn_digits" in capsys.readouterr().out
    assert main(["experiment=mwn_digits", "--cfg", "job"]) == 0


def test_a_sweep_leaves_a_folder_a_job_and_goes_on_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", *RUN, "seed=0,1", "classifier.optimizer.lr=0.1,-1"]) == 3
    out = capsys.readouterr().out
    assert "mean" in out
    (sweep,) = Path("sweeps/mwn_digits").iterdir()
    jobs = json.loads((sweep / "sweep.json").read_text())["jobs"]
    assert [job["exit_code"] for job in jobs] == [0, 2, 0, 2]
    assert (sweep / "0" / "result.json").exists()
    assert (sweep / "2" / "metrics.jsonl").exists()


def test_a_sweep_in_which_nothing_can_run_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "experiment=mwn_digits,mwn_digit"]) == 2
    assert "did you mean mwn_digits" in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_a_sweep_over_estimators_takes_the_short_form(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RUN, "-m", "classifier.hypergradient=darts,t1t2,cg"]) == 0
    assert "classifier.hypergradient" in capsys.readouterr().out
    (sweep,) = Path("sweeps/mwn_digits").iterdir()
    assert len(json.loads((sweep / "sweep.json").read_text())["jobs"]) == 3


YAMLS = [*PRIMARY_DIR.glob("*.yaml"), *sorted(configs_dir().rglob("*.yaml"))]


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: "/".join(path.parts[-2:]))
def test_every_yaml_says_what_it_is_and_the_command_that_runs_it(path: Path) -> None:
    text = path.read_text()
    assert "# about: " in text
    assert "mlorun " in text
    assert len(text.splitlines()) <= 40


@pytest.mark.parametrize("name", list(options_of("experiment")))
def test_every_experiment_composes_and_checks(name: str) -> None:
    import mlorun

    assert mlorun.compose([f"experiment={name}"]).name == name


@pytest.mark.parametrize(
    "group", ["module", "optimizer", "scheduler", "hypergradient", "problem", "logger", "data", "engine"]
)
def test_every_option_composes_into_an_experiment(group: str) -> None:
    import mlorun

    placed = group in ("module", "optimizer", "scheduler", "hypergradient", "problem")
    for option in options_of(group):
        mlorun.compose(["experiment=mwn_digits", f"{'classifier.' if placed else ''}{group}={option}"])
