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


_OPTION = {"option": True}  # a key that an option of the config group of the same name fills
_FROM_0 = {"at_least": 0}
_FROM_1 = {"at_least": 1}
_POSITIVE = {"above": 0.0}
_FRACTION = {"above": 0.0, "below": 1.0}


class _Open(dict[str, Any]):
    """A class between dict and a dataclass, without which OmegaConf takes the dataclass for a plain dict."""


@dataclass
class ProblemConfig(_Open):
    """One problem. Any further key is an argument of the class in `_target_`."""

    _target_: str = MISSING
    module: Any = field(default=MISSING, metadata=_OPTION)
    optimizer: Any = field(default=MISSING, metadata=_OPTION)
    scheduler: Any = field(default_factory=dict, metadata=_OPTION)  # {} is a constant learning rate
    # {} where no problem differentiates through this one
    hypergradient: Any = field(default_factory=dict, metadata=_OPTION)
    # {option: {key: number}}: see optimizer_defaults.py
    optimizer_defaults: dict[str, dict[str, Any]] = field(default_factory=dict)
    split: str | None = None  # of the data; null where the class makes its own batches
    batch_size: int = field(default=100, metadata=_FROM_1)
    workers: int = field(default=0, metadata=_FROM_0)  # processes that load batches of a Dataset
    unroll_steps: int = field(default=1, metadata=_FROM_1)
    warmup_steps: int = field(default=0, metadata=_FROM_0)
    gradient_accumulation: int = field(default=1, metadata=_FROM_1)
    gradient_clip: float | None = field(default=None, metadata=_POSITIVE)  # null is no bound
    roll_back: bool = False
    evaluate_on: list[str] = field(default_factory=list)
    evaluation_batch_size: int = field(default=1000, metadata=_FROM_1)


# the keys of a problem that this schema knows; every other key is an argument of its class
PROBLEM_KEYS = tuple(key.name for key in fields(ProblemConfig))
# groups whose options belong to one problem: module@problems.NAME.module
PLACED_GROUPS = tuple(key.name for key in fields(ProblemConfig) if "option" in key.metadata)
# those of them without a default
REQUIRED_GROUPS = tuple(
    key.name for key in fields(ProblemConfig) if key.name in PLACED_GROUPS and key.default == MISSING
)
# what the class of every problem is called with: the arguments of mlorun.Problem
PROBLEM_ARGUMENTS = (
    "name", "module", "optimizer", "scheduler", "stream", "update_schedule", "gradient_clip", "hypergradient",
)  # fmt: skip


@dataclass
class DependenciesConfig:
    """u2l: whose optimum an upper problem differentiates through; l2u: who steps after a lower one.

    Without u2l it is the reverse of l2u; {} is nobody, as in a game. An empty l2u is the reverse of u2l.
    """

    u2l: dict[str, list[str]] | None = None
    l2u: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class EngineConfig:
    """Counts of global steps; the numbers are in configs/engine."""

    train_iters: int = field(default=MISSING, metadata=_FROM_0)
    valid_every: int = field(default=MISSING, metadata=_FROM_0)
    log_every: int = field(default=MISSING, metadata=_FROM_1)


@dataclass
class RunConfig:
    """Where run folders go."""

    root: str = "runs"
    sweep_root: str = "sweeps"


@dataclass
class SweepConfig:
    """How the jobs of a sweep run. No part of a job."""

    jobs: int = field(default=1, metadata=_FROM_1)  # at a time; they share the cores
    fail_fast: bool = False  # the first job that fails ends the sweep


@dataclass
class CheckpointConfig:
    """When the state of a run is saved, and which checkpoints stay. The last state is always saved."""

    every: int = field(default=0, metadata=_FROM_0)  # global steps; 0: not by steps
    seconds: float = field(default=60.0, metadata=_FROM_0)  # 0: not by time
    keep: int = field(default=2, metadata=_FROM_1)  # the newest that stay
    metric: str | None = None  # whose best checkpoints stay too: PROBLEM/METRIC or SPLIT/METRIC
    mode: str = field(default="min", metadata={"one_of": ("min", "max")})
    keep_best: int = field(default=1, metadata=_FROM_1)


@dataclass
class NonfiniteConfig:
    """What happens where a loss or a gradient is NaN or infinite."""

    policy: str = field(default="stop", metadata={"one_of": ("stop", "skip", "rewind")})
    skips: int = field(default=20, metadata=_FROM_1)  # skip: so many steps of a problem in a row may be left out
    rewinds: int = field(default=5, metadata=_FROM_1)  # rewind: so many times in all
    factor: float = field(default=0.5, metadata=_FRACTION)  # rewind: what every learning rate is multiplied by
    save: bool = False  # keep the broken state, in checkpoints/nonfinite


@dataclass
class Config:
    """The composed config."""

    name: str = MISSING
    seed: int = 0
    device: str = "auto"  # auto, cpu, cuda, cuda:N or mps
    precision: str = "fp32"  # fp32, bf16 or fp16
    threads: int | None = field(default=None, metadata={"at_least": 1, "below": 4097})  # null: as many as torch likes
    deterministic: bool = True
    trusted_packages: list[str] = field(default_factory=list)  # further roots that a _target_ may be below
    run: RunConfig = field(default_factory=RunConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    nonfinite: NonfiniteConfig = field(default_factory=NonfiniteConfig)
    tags: list[str] = field(default_factory=list)  # a person's own words for a run
    notes: str | None = None
    init_from: str | None = None  # a run whose weights to start from
    data: Any = field(default_factory=dict)
    dependencies: DependenciesConfig = field(default_factory=DependenciesConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    problems: dict[str, ProblemConfig] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    callback: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)  # an experiment's own, for ${constants.NAME}


TOP_KEYS = tuple(key.name for key in fields(Config))
# nodes that take no key beside those of their schema; "" is the whole config
CLOSED = {
    "": Config, "run": RunConfig, "checkpoint": CheckpointConfig, "dependencies": DependenciesConfig,
    "engine": EngineConfig, "sweep": SweepConfig, "nonfinite": NonfiniteConfig,
}  # fmt: skip


ConfigStore.instance().store(name=NAME, node=Config, provider="mlorun")
