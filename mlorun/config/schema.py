"""Every key that mlorun itself reads: its type, its default, and what it may be. No torch."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

NAME = "mlorun_schema"  # how configs/config.yaml calls this


# the only way to a typed node with further keys in OmegaConf 2.3, which Hydra 1.3 stays on
warnings.filterwarnings("ignore", r"Class `ProblemConfig` subclasses `Dict`", UserWarning)


class _Open(dict[str, Any]):
    """A class between dict and a dataclass, without which OmegaConf takes the dataclass for a plain dict."""


@dataclass
class ProblemConfig(_Open):
    """One problem. Any further key is an argument of the class in `_target_`."""

    _target_: str = MISSING
    module: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = field(default_factory=dict)  # {} is a constant learning rate
    hypergradient: Any = field(default_factory=dict)  # {} where nobody differentiates through this problem
    split: str | None = None  # of the data; null where the class makes its own batches
    batch_size: int = 100
    unroll_steps: int = 1
    warmup_steps: int = 0
    gradient_accumulation: int = 1
    gradient_clip: float | None = None
    roll_back: bool = False
    evaluate_on: list[str] = field(default_factory=list)
    evaluation_batch_size: int = 1000


@dataclass
class DependenciesConfig:
    """u2l: whose optimum an upper problem differentiates through; l2u: who steps after a lower one."""

    u2l: dict[str, list[str]] = field(default_factory=dict)
    l2u: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class EngineConfig:
    """Counts of global steps; the numbers are in configs/engine."""

    train_iters: int = MISSING
    valid_every: int = MISSING
    log_every: int = MISSING


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
    threads: int | None = None  # null: as many as torch likes
    deterministic: bool = True
    trusted_packages: list[str] = field(default_factory=list)  # further roots that a _target_ may be below
    run: RunConfig = field(default_factory=RunConfig)
    data: Any = field(default_factory=dict)
    dependencies: DependenciesConfig = field(default_factory=DependenciesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    problems: dict[str, ProblemConfig] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)


ConfigStore.instance().store(name=NAME, node=Config, provider="mlorun")
