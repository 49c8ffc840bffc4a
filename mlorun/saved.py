"""A run folder as objects: its config, its problems with their trained weights, its metrics as a table."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mlorun.assemble import build
from mlorun.callbacks.checkpoints import require_ours
from mlorun.config.compose import prepare
from mlorun.config.places import require_trust
from mlorun.core.engine import Engine
from mlorun.core.program.problem import Problem
from mlorun.errors import ConfigError
from mlorun.restart import fitting, saved_config
from mlorun.run import checkpoint
from mlorun.run.find import find_run
from mlorun.run.folder import RunFolder
from mlorun.run.record import read_result


@dataclass(frozen=True)
class SavedRun:
    """What `mlorun.load` gives.

    folder   the run's
    config   the saved one, resolved
    step     of the checkpoint that the weights are of
    engine   built from the config, in the state of that checkpoint: `evaluate()`, `gradient(name)`, `steps()` work
    """

    folder: Path
    config: DictConfig
    step: int
    engine: Engine

    @property
    def problems(self) -> dict[str, Problem]:
        """By name; `problems["classifier"].module` is a plain nn.Module."""
        return self.engine.problems

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """One row for each event of metrics.jsonl: `step`, `kind` (train, eval or hypergradient), `source`, and its
        metrics by name. `pandas.DataFrame(run.metrics)` is a table."""
        lines = RunFolder(self.folder).metrics.read_text(encoding="utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return [
            {
                **{key: event[key] for key in ("step", "kind", "source")},
                **{name: float(value) for name, value in event["metrics"].items()},
            }
            for event in events
        ]

    @cached_property
    def result(self) -> dict[str, Any]:
        """result.json; {} where the run has not ended."""
        return read_result(RunFolder(self.folder).result) or {}


def load(run: str | Path, *, best: bool = False, device: str | None = None, trust: tuple[str, ...] = ()) -> SavedRun:
    """The run in a folder, the newest of a name, or `latest`; in the state of its newest checkpoint.

    best     of its best checkpoint by `checkpoint.metric`, in place of its newest
    device   in place of the run's own
    trust    packages beside mlorun and ./recipes that its config may name: `trusted_packages`

    Raises ConfigError where there is no such run, and CheckpointError where it has no checkpoint that can be used.
    """
    prepare()
    home = find_run(str(run))
    config = saved_config(home)
    require_trust(config.trusted_packages, [f"trusted_packages=[{','.join(trust)}]"] if trust else [])
    if device is not None:
        config.device = device
    if best:
        path = home.checkpoints / "best.pt"
        if not path.exists():
            raise ConfigError(
                "the run has no best checkpoint",
                where=str(home.path),
                fix="checkpoint.metric=... keeps one",
            )
        content = checkpoint.load(path)
    else:
        newest = next(checkpoint.good_ones(home.checkpoints), None)
        if newest is None:
            raise checkpoint.CheckpointError("no checkpoint of this run can be used", where=str(home.checkpoints))
        path, content = newest
    require_ours(content, path)
    engine = build(config)
    with fitting(path):
        engine.load_state_dict(content["engine"])
    return SavedRun(home.path, config, engine.step_count, engine)
