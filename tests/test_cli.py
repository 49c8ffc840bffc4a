"""The command line as a person meets it: help, verbs, failures, sweeps. Mistakes have tests/test_screens.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlorun.cli import VERBS, main
from mlorun.config.locations import PRIMARY_DIR, configs_dir
from mlorun.config.locations import options as options_of
from mlorun.config.schema import PLACED_GROUPS
from mlorun.config.shorthand import PROBLEM


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


RUN = ["experiment=mwn_digits", "engine.train_iters=4", "threads=1"]


def test_help_shows_commands_worth_copying(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"], ["experiment=mwn_digits", "--help"], ["help"]):
        assert main(words) == 0
        assert capsys.readouterr().out.count("mlorun experiment=mwn_digits") >= 2


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["train", "seed=1"], "mlorun experiment=NAME seed=1"),
        (["experiment", "mwn_digits"], "mlorun experiment=mwn_digits"),
        (["fit", "experiment=mwn_digits"], "mlorun experiment=mwn_digits"),
        (["list"], "mlorun ls"),
        (["load", "latest"], "in Python: mlorun.load(RUN)"),
        (["shwo"], "did you mean show?"),
    ],
)
def test_a_word_that_is_no_verb_gets_the_line_to_type(
    words: list[str], fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert fix in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_of_its_own(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"mlorun {verb}" in said and "Three to start with" not in said


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

    place = "@problems.classifier" if group == PROBLEM else f"@problems.classifier.{group}"
    for option, path in options_of(group).items():
        # written out: a short form takes another composition
        words = ["experiment=mwn_digits", f"{group}{place if group in (PROBLEM, *PLACED_GROUPS) else ''}={option}"]
        try:
            mlorun.compose(words)
        except mlorun.ConfigError:
            # it needs what its own experiment has: the command in its head is right
            head = next(line for line in path.read_text().splitlines() if line.startswith("#   mlorun "))
            mlorun.compose(head.removeprefix("#   mlorun "))
