"""The verbs that only look."""

from __future__ import annotations

import re

import pytest
from omegaconf import OmegaConf

from mlorun.cli import main
from mlorun.config.compose import composed
from mlorun.config.locations import options
from mlorun.config.option_files import chosen_options, description, option_summary
from tests.experiments import Experiments, shipped

pytestmark = pytest.mark.usefixtures("empty_folder")


def output(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(list(args)) == 0
    return capsys.readouterr().out


def test_ls_lists_the_groups_and_how_to_choose_from_them(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "ls")
    assert "experiment=OPTION" in text
    assert "NAME.optimizer=OPTION" in text


def test_ls_of_a_group_says_what_each_option_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert "decoupled weight decay" in output(capsys, "ls", "optimizer")


@pytest.mark.parametrize("option", [name for name in options("hypergradient") if name != "none"])
def test_every_hypergradient_says_its_formula_citation_cost_memory_and_use(option: str) -> None:
    path = options("hypergradient")[option]
    summary = option_summary(path)
    assert {*summary, "nested"} == {"formula", "cost", "memory", "nested", "use it"} and all(summary.values())
    assert ("nested" in summary) == ("implicit.Implicit" in path.read_text())
    assert option in ("exact", "first_order") or re.search(r"\(.*\d{4}.*\)", description(path)), "no citation"


def test_ls_hypergradient_shows_the_cards(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "ls", "hypergradient")
    assert "formula (H + damping I) x = v" in text
    assert "memory  " in text and "use it  " in text


def test_ls_marks_the_users_own_options(own_configs: Experiments, capsys: pytest.CaptureFixture[str]) -> None:
    own_configs.raw("optimizer/mine.yaml", "# about: my own\n_target_: torch.optim.SGD\n")
    assert "my own (yours)" in output(capsys, "ls", "optimizer")


def test_ls_of_an_unknown_group_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "optimiser"]) == 2
    assert "did you mean optimizer?" in capsys.readouterr().err


def test_show_prints_the_resolved_config_as_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=mwn_digits", "classifier.optimizer.lr=0.5"]
    assert OmegaConf.create(output(capsys, "show", *overrides)) == composed(overrides)


def test_show_shows_a_config_that_check_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "lr: abc" in output(capsys, "show", "experiment=mwn_digits", "classifier.optimizer.lr=abc")


def test_graph_prints_levels_paths_and_the_order_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "graph", "experiment=mwn_digits", "classifier.unroll_steps=3")
    assert "2  reweight" in text
    assert "1  classifier" in text
    assert "classifier x3, reweight" in text
    assert "3 global steps" in text


def test_graph_of_one_problem_has_no_hypergradients(capsys: pytest.CaptureFixture[str]) -> None:
    assert "hypergradients: none" in output(capsys, "graph", "experiment=mwn_mnist_baseline")


def test_graph_refuses_an_unknown_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "experiment=mwn_digits", "dependencies.u2l={rewieght:[classifier]}"]) == 2
    assert "did you mean reweight?" in capsys.readouterr().err


def test_graph_without_an_experiment_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph"]) == 2
    assert "no experiment was chosen" in capsys.readouterr().err


def test_ls_shows_how_to_replace_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert "NAME.problem=OPTION" in output(capsys, "ls")


def test_ls_shows_what_problems_and_experiments_choose(capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(output(capsys, "ls", "problem", "experiment").split())
    assert "chooses module=mlp, optimizer=sgd, hypergradient=t1t2" in text
    assert "classifier.problem=weighted_classifier, data=mnist_long_tailed, classifier.scheduler=multi_step" in text


def test_everything_that_a_defaults_list_chooses_can_be_typed_as_it_is_shown() -> None:
    for name, path in options("experiment").items():
        typed = [text for text in chosen_options(path) if "=" in text]  # the others are files that this one starts from
        assert composed([f"experiment={name}", *typed]) == shipped(name)


def test_ls_lists_a_file_that_is_not_yaml(own_configs: Experiments, capsys: pytest.CaptureFixture[str]) -> None:
    own_configs.raw("experiment/broken.yaml", "# about: not finished\ndefaults: [\n")
    assert "not finished (yours)" in output(capsys, "ls", "experiment")


def test_ls_reads_no_more_of_a_file_than_a_config_may_have(
    own_configs: Experiments, capsys: pytest.CaptureFixture[str]
) -> None:
    bomb = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else '1'] * 9)}]" for n in range(60))
    own_configs.raw("module/bomb.yaml", f"# about: unfolds\n{bomb}\n")
    own_configs.raw("module/deep.yaml", "# about: is deep\na: " + "[" * 50_000)
    own_configs.raw("module/large.yaml", "# about: is large\n" + "#" * 2_000_000)
    (own_configs.folder / "module" / "folder.yaml").mkdir()
    shown = output(capsys, "ls", "module")
    assert "unfolds (yours)" in shown
    assert "is deep (yours)" in shown
    assert "is large" not in shown
    assert "folder" not in shown


def test_graph_refuses_counts_that_make_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "experiment=mwn_digits", "classifier.unroll_steps=0"]) == 2
    assert "problems.classifier.unroll_steps must be at least 1" in capsys.readouterr().err
