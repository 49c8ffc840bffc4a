"""Every experiment end to end, in this process: a floor on the result, the run folder, the same bits twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

import mlorun
from mlorun.cli import main
from mlorun.run import checkpoint
from tests.recipes.runs import DATA, needs_mnist


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLORUN_DATA", str(DATA))


def newest(name: str) -> Path:
    return Path("runs") / name / "latest"


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((newest(name) / "result.json").read_text())
    return found


def test_mwn_digits_learns_and_leaves_a_whole_run_folder() -> None:
    assert main(["experiment=mwn_digits"]) == 0
    end = result("mwn_digits")
    assert end["status"] == "finished"
    assert end["steps"] == 1000
    # the mean over five seeds is 90 with a standard deviation of 2
    assert end["metrics"]["test/accuracy"] > 84
    folder = newest("mwn_digits")
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml", "run.json", "metrics.jsonl", "log.txt", "checkpoints", "result.json", ".lock",
    }  # fmt: skip
    state = checkpoint.load(folder / "checkpoints" / "final.pt")["engine"]
    assert state["step"] == 1000
    assert set(state["problems"]) == {"reweight", "classifier"}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {(line["kind"], line["source"]) for line in lines} == {
        ("train", "reweight"), ("train", "classifier"), ("eval", "classifier"), ("hypergradient", "reweight"),
    }  # fmt: skip
    assert [line["step"] for line in lines if line["kind"] == "eval"] == [250, 500, 750, 1000]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("change", [[], ["classifier.module.dropout=0.3"], ["precision=bf16"]])
def test_the_same_command_twice_gives_the_same_bits_and_another_seed_gives_others(change: list[str]) -> None:
    command = ["experiment=mwn_digits", "engine.train_iters=60", "engine.log_every=20", *change]
    ends, files = [], []
    for seed in (0, 0, 1):
        assert main([*command, f"seed={seed}"]) == 0
        ends.append(result("mwn_digits")["params_sha256"])
        files.append((newest("mwn_digits") / "metrics.jsonl").read_bytes())
    assert ends[0] == ends[1] != ends[2]
    assert files[0] == files[1] != files[2]


def test_the_config_of_a_run_folder_describes_the_same_run() -> None:
    assert main(["experiment=mwn_digits", "engine.train_iters=20", "classifier.hypergradient=cg"]) == 0
    from omegaconf import OmegaConf

    config = OmegaConf.load(newest("mwn_digits") / "config.yaml")
    engine = mlorun.build(config)  # type: ignore[arg-type]
    engine.run()
    modules = {name: problem.module for name, problem in engine.problems.items()}
    assert checkpoint.params_sha256(modules) == result("mwn_digits")["params_sha256"]


@pytest.mark.parametrize(
    "preset", ["darts", "t1t2", "neumann", "cg", "minres", "normal_cg", "nystrom", "soba", "sama", "fixed_point"]
)
def test_every_hypergradient_moves_the_weight_net(preset: str) -> None:
    config = mlorun.compose(["experiment=mwn_digits", f"classifier.hypergradient={preset}", "engine.train_iters=5"])
    engine = mlorun.build(config)
    before = [p.detach().clone() for p in engine.problems["reweight"].theta]
    engine.run()
    after = engine.problems["reweight"].theta
    assert all(torch.isfinite(p).all() for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("option", ["adam", "adamw", "rmsprop", "adagrad", "sgd"])
def test_every_optimizer_trains_the_classifier(option: str) -> None:
    overrides = ["experiment=mwn_digits", "engine.train_iters=60", f"classifier.optimizer={option}"]
    engine = mlorun.build(mlorun.compose(overrides))
    before = engine.evaluate()["test/loss"]
    engine.run()
    assert engine.evaluate()["test/loss"] < 0.9 * before


def test_muon_trains_matrices_and_says_what_it_cannot_train(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["experiment=mwn_digits", "engine.train_iters=5", "classifier.optimizer=muon"]
    assert main([*command, "classifier.module.bias=false"]) == 0
    assert main(command) == 2
    assert "problems.classifier.optimizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["multi_step", "step", "cosine", "one_cycle", "linear_warmup", "reduce_on_plateau", "none"]
)
def test_every_scheduler_gives_the_learning_rates_that_torch_gives(option: str) -> None:
    overrides = ["experiment=mwn_digits", "engine.train_iters=5", f"classifier.scheduler={option}"]
    if option == "multi_step":
        overrides.append("classifier.scheduler.milestones=[2,4]")
    if option == "step":
        overrides.append("classifier.scheduler.step_size=2")
    engine = mlorun.build(mlorun.compose(overrides))
    classifier = engine.problems["classifier"]
    plain = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=0.1, momentum=0.9)
    reference: Any = {
        "multi_step": lambda: lr_scheduler.MultiStepLR(plain, [2, 4], gamma=0.1),
        "step": lambda: lr_scheduler.StepLR(plain, 2, gamma=0.1),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(plain, 5),
        "one_cycle": lambda: lr_scheduler.OneCycleLR(plain, 0.1, total_steps=5),
        "linear_warmup": lambda: lr_scheduler.LinearLR(plain, 0.01, total_iters=100),
        "reduce_on_plateau": lambda: lr_scheduler.ReduceLROnPlateau(plain, patience=100),
        "none": lambda: None,
    }[option]()
    rates, expected = [], []
    for step in engine.steps():
        rates.append(classifier.optimizer.param_groups[0]["lr"])
        plain.step()
        if reference is not None and step < 5:
            reference.step(*[0.0] * (option == "reduce_on_plateau"))
        expected.append(plain.param_groups[0]["lr"])
    assert rates[:4] == pytest.approx(expected[:4])
    assert len(set(rates[:4])) > 1 or option in ("reduce_on_plateau", "none")
    assert classifier.scheduler is None or classifier.scheduler.last_epoch == 5


def test_every_image_module_takes_images_of_28_by_28() -> None:
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from mlorun.config.locations import configs_dir

    for option in ("mlp", "lenet", "resnet"):
        module = instantiate(OmegaConf.load(configs_dir() / "module" / f"{option}.yaml"))
        assert module(torch.randn(2, 1, 28, 28)).shape == (2, 10)


@needs_mnist
@pytest.mark.parametrize("experiment", ["mwn_mnist", "mwn_mnist_baseline"])
def test_mnist_experiments_learn(experiment: str) -> None:
    assert main([f"experiment={experiment}", "engine.train_iters=300", "engine.valid_every=0"]) == 0
    assert result(experiment)["metrics"]["test/accuracy"] > 75


@needs_mnist
@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["mwn_mnist", "mwn_mnist_baseline"])
def test_mnist_experiments_reach_their_accuracy(experiment: str) -> None:
    assert main([f"experiment={experiment}"]) == 0
    # 5 seeds: 91.8 and 91.5, standard deviation 1.2 and 1.0
    assert result(experiment)["metrics"]["test/accuracy"] > 88
