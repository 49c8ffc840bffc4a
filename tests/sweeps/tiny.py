"""A program of a user's own whose jobs end in every way, for sweeps in ./."""

from __future__ import annotations

from pathlib import Path

RECIPE = '''
import os, signal, sys, time
import torch
from mlorun import Problem


class Ending(Problem):
    """(w - 1)^2, and an end at its step `at`, if a folder does not hold `mended`."""

    def __init__(self, *, ending="fine", at=3, pause=0.0, **arguments):
        super().__init__(**arguments)
        self.ending, self.at, self.pause, self.steps = ending, at, pause, 0

    def get_batch(self):
        return None

    def training_step(self, batch):
        self.steps += 1
        time.sleep(self.pause if self.steps >= self.at else 0.0)  # not while the program is probed
        if self.steps == self.at and not os.path.exists("mended"):
            self.end()
        return ((self.module.weight - 1.0) ** 2).sum()

    def end(self):
        if self.ending == "raise":
            raise ValueError("a fault of the recipe")
        if self.ending == "exit":
            sys.exit(0)
        if self.ending == "crash":
            os._exit(0)
        if self.ending == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.ending == "double":
            torch.set_default_dtype(torch.float64)
'''
EXPERIMENT = """\
# @package _global_
# about: a program that ends as it is told
defaults:
  - /module@problems.one.module: linear
  - /optimizer@problems.one.optimizer: sgd
  - _self_
  - override /logger: jsonl
name: tiny
engine: {train_iters: 6, log_every: 2, valid_every: 0}
problems:
  one: {_target_: recipes.ending.Ending}
"""
MODULE = """\
# about: one number
_target_: torch.nn.Linear
in_features: 1
out_features: 1
"""


def write(folder: Path) -> None:
    """Put the recipe and its configs into `folder`."""
    files = {
        "recipes/ending.py": RECIPE,
        "configs/experiment/tiny.yaml": EXPERIMENT,
        "configs/module/linear.yaml": MODULE,
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
