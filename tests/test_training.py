"""Training from Python, and the public names."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mlorun
from mlorun.run import checkpoint

pytestmark = pytest.mark.usefixtures("empty_folder")
SHORT = ["experiment=mwn_digits", "engine.train_iters=4", "threads=1", "logger=jsonl"]


def test_train_makes_the_run_folder_that_the_shell_makes() -> None:
    from mlorun.cli import main

    assert main(SHORT) == 0
    result = mlorun.train(mlorun.compose(SHORT), overrides=SHORT)
    shell, python = sorted(path for path in Path("runs/mwn_digits").iterdir() if not path.is_symlink())
    assert {path.name for path in shell.iterdir()} == {path.name for path in python.iterdir()}
    for name in ("config.yaml", "metrics.jsonl"):
        assert (shell / name).read_bytes() == (python / name).read_bytes()
    written = json.loads((python / "result.json").read_text())
    assert written["params_sha256"] == result.params_sha256
    assert written["params_sha256"] == json.loads((shell / "result.json").read_text())["params_sha256"]
    assert json.loads((python / "run.json").read_text())["overrides"] == SHORT


def test_train_takes_callbacks_and_a_folder_and_the_final_state_can_be_loaded() -> None:
    steps: list[int] = []

    class Count(mlorun.Callback):
        def on_step_end(self, engine: mlorun.Engine) -> None:
            steps.append(engine.step_count)

    config = mlorun.compose(SHORT)
    result = mlorun.train(config, folder=Path("mine"), callbacks=[Count()])
    assert steps == [1, 2, 3, 4]
    engine = mlorun.build(config)
    engine.load_state_dict(checkpoint.load(Path("mine/checkpoints/final.pt"))["engine"])
    assert engine.step_count == 4
    modules = {name: problem.module for name, problem in engine.problems.items()}
    assert checkpoint.params_sha256(modules) == result.params_sha256


def test_the_public_names_are_there_typed_and_listed() -> None:
    assert {"Problem", "Metric", "Engine", "Callback", "build", "compose", "train", "draw"} <= set(mlorun.__all__)
    assert set(mlorun.__all__) <= set(dir(mlorun))
    for name in mlorun.__all__:
        assert getattr(mlorun, name) is not None
    for name in ("build", "compose", "train", "draw"):
        signature = inspect.signature(getattr(mlorun, name))
        assert signature.return_annotation is not inspect.Signature.empty
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = mlorun.trian  # type: ignore[attr-defined]


def test_an_engine_needs_no_config() -> None:
    class Fit(mlorun.Problem):
        up: mlorun.Problem  # peers can be annotated, for editors

        def get_batch(self) -> None:
            return None

        def training_step(self, batch: None) -> torch.Tensor:
            return (self.module.weight - self.up.module.weight).square().sum()  # type: ignore[operator]

    class Choose(mlorun.Problem):
        def get_batch(self) -> None:
            return None

        def training_step(self, batch: None) -> torch.Tensor:
            return (self.low.module.weight - 3.0).square().sum()

    from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
    from mlorun.hypergradient.estimators.implicit import Implicit
    from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient

    def sgd(theta: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(theta, lr=0.25)

    cg = Implicit(ConjugateGradient(3, 0.0, 0.0, False), ForwardOverReverse(), "after", "full")
    up = Choose(name="up", module=torch.nn.Linear(1, 1, bias=False), optimizer=sgd)
    low = Fit(name="low", module=torch.nn.Linear(1, 1, bias=False), optimizer=sgd, hypergradient=cg)
    engine = mlorun.Engine([up, low], {"u2l": {"up": ["low"]}}, train_iters=40)
    engine.run()
    # both follow each other to 3, where the upper loss is least
    assert low.module.weight.item() == pytest.approx(3.0, abs=1e-3)  # type: ignore[operator, union-attr]
    assert up.module.weight.item() == pytest.approx(3.0, abs=1e-3)  # type: ignore[operator, union-attr]
