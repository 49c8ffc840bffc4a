"""Every key that mlorun itself reads: its type, its default, its bounds. The only place that states them. No torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

NAME = "mlorun_schema"  # its name in the defaults list of primary/config.yaml


# the only way to a typed node with further keys in OmegaConf 2.3, which Hydra 1.3 stays on
warnings.filterwarnings("ignore", r"Class `ProblemConfig` subclasses `Dict`", UserWarning)


def _at_least(bound: int, default: Any) -> Any:
    return field(default=default, metadata={"at_least": bound})


def _option(**default: Any) -> Any:
    """A key that a config group of the same name fills."""
    return field(**default, metadata={"option": True})


class _Open(dict[str, Any]):
    """A class between dict and a dataclass, without which OmegaConf takes the dataclass for a plain dict."""


@dataclass
class ProblemConfig(_Open):
    """One problem. Any further key is an argument of the class in `_target_`."""

    _target_: str = MISSING
    module: Any = _option(default=MISSING)
    optimizer: Any = _option(default=MISSING)
    scheduler: Any = _option(default_factory=dict)  # {} is a constant learning rate
    hypergradient: Any = _option(default_factory=dict)  # {} where nobody differentiates through this problem
    # {option: {key: number}}: see optimizer_defaults.py
    optimizer_defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    split: str | None = None  # of the data; null where the class makes its own batches
    batch_size: int = _at_least(1, default=100)
    unroll_steps: int = _at_least(1, default=1)
    warmup_steps: int = _at_least(0, default=0)
    gradient_accumulation: int = _at_least(1, default=1)
    gradient_clip: float | None = field(default=None, metadata={"above": 0.0})  # null is no bound
    roll_back: bool = False
    evaluate_on: list[str] = field(default_factory=list)
    evaluation_batch_size: int = _at_least(1, default=1000)


# the keys of a problem that this schema knows; every other key is an argument of its class
PROBLEM_KEYS = tuple(key.name for key in fields(ProblemConfig))
# groups whose options belong to one problem: module@problems.NAME.module
PLACED_GROUPS = tuple(key.name for key in fields(ProblemConfig) if "option" in key.metadata)
# those of them without a default
REQUIRED_GROUPS = tuple(key.name for key in fields(ProblemConfig) if key.name in PLACED_GROUPS and key.default == MISSING)
# what the class of every problem is called with: the arguments of mlorun.Problem
PROBLEM_ARGUMENTS = (
    "name", "module", "optimizer", "scheduler", "stream", "pace", "gradient_clip", "hypergradient",
)  # fmt: skip


@dataclass
class DependenciesConfig:
    """u2l: whose optimum an upper problem differentiates through; l2u: who steps after a lower one.

    An empty one is the reverse of the other.
    """

    u2l: dict[str, list[str]] = field(default_factory=dict)
    l2u: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class EngineConfig:
    """Counts of global steps; the numbers are in configs/engine."""

    train_iters: int = _at_least(0, default=MISSING)
    valid_every: int = _at_least(0, default=MISSING)
    log_every: int = _at_least(1, default=MISSING)


@dataclass
class RunConfig:
    """Where run folders go."""

    root: str = "runs"
    sweep_root: str = "sweeps"


@dataclass
class Config:
    """The composed config."""

    name: str = MISSING
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    precision: str = "fp32"  # fp32, bf16 or fp16
    threads: int | None = _at_least(1, default=None)  # null: as many as torch likes
    deterministic: bool = True
    trusted_packages: list[str] = field(default_factory=list)  # further roots that a _target_ may be below
    run: RunConfig = field(default_factory=RunConfig)
    data: Any = field(default_factory=dict)
    dependencies: DependenciesConfig = field(default_factory=DependenciesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    problems: dict[str, ProblemConfig] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


TOP_KEYS = tuple(key.name for key in fields(Config))


ConfigStore.instance().store(name=NAME, node=Config, provider="mlorun")
