"""Experiments of a user's own, in ./configs, and ours where there are none."""

from __future__ import annotations

import contextlib
import tempfile
from functools import cache
from pathlib import Path

from omegaconf import DictConfig

from mlorun.config.compose import composed
from mlorun.config.locations import configs_dir

# two problems without problem options, as the README shows it; no scheduler is chosen
PLAIN = """\
# @package _global_
# about: my own reweighting
defaults:
  - /module@problems.reweight.module: weight_net
  - /optimizer@problems.reweight.optimizer: adam
  - /module@problems.classifier.module: mlp_digits
  - /optimizer@problems.classifier.optimizer: sgd
  - /hypergradient@problems.classifier.hypergradient: t1t2
  - _self_
  - override /data: digits_long_tailed
name: plain
dependencies: {u2l: {reweight: [classifier]}}
problems:
  reweight: {_target_: mlorun.recipes.reweighting.Reweight, split: balanced}
  classifier: {_target_: mlorun.recipes.reweighting.WeightedClassifier, split: train, evaluate_on: [test]}
"""


@cache
def shipped(name: str) -> DictConfig:
    """An experiment of ours in a folder without configs, composed once a process; to be read."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return composed([f"experiment={name}"])


class Experiments:
    """Writes experiments into ./configs, which are put before ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "configs"

    def write(self, name: str, *, drop: str = "", append: str = "") -> Path:
        """mwn_digits under another name, without the lines that contain `drop`, and with more at its end."""
        text = (configs_dir() / "experiment" / "mwn_digits.yaml").read_text()
        lines = [line for line in text.splitlines() if not drop or drop not in line]
        return self.raw(f"experiment/{name}.yaml", "\n".join(lines) + "\n" + append)

    def raw(self, path: str, text: str) -> Path:
        """A file of any content."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file
