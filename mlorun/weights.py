"""`init_from`: the weights of another run, put into this one's problems where they match."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mlorun.core.engine import Engine
from mlorun.errors import ConfigError
from mlorun.run import checkpoint
from mlorun.run.find import find_run

log = logging.getLogger("mlorun.run")


def load_weights(engine: Engine, source: str) -> None:
    """Parameters and buffers of a run's newest checkpoint, or of a checkpoint file, into problems and keys of the same
    name and shape; the log says what matched. Raises ConfigError where nothing does."""
    if source.endswith(".pt"):
        content = checkpoint.load(Path(source))
    else:
        folder = find_run(source).checkpoints
        newest = next(checkpoint.good_ones(folder), None)
        if newest is None:
            raise ConfigError("no checkpoint of that run can be used", where="init_from", seen=str(folder))
        content = newest[1]
    saved = _modules(content)
    matched = {
        name: _load_matching(problem.module, saved[name]) for name, problem in engine.problems.items() if name in saved
    }
    if not any(count for count, _ in matched.values()):
        raise ConfigError(
            "nothing in that run fits this program",
            where="init_from",
            seen=f"problems {', '.join(saved)}",
            fix="problems are matched by name, and their tensors by name and shape",
        )
    for name, problem in engine.problems.items():
        count, others = matched.get(name, (0, []))
        total = len(problem.module.state_dict())
        rest = f"; left as they are: {', '.join(others)}" if others else ""
        log.info("init_from: %s of %s tensors of %s match%s", count, total, name, rest)


def _modules(content: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Parameters and buffers of every problem in a checkpoint. Raises ConfigError where it has none."""
    try:
        return {name: problem["module"] for name, problem in content["engine"]["problems"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            "that checkpoint holds no weights of problems",
            where="init_from",
            seen=f"{type(error).__name__}: {error}",
            fix="a run of mlorun, or a file of its folder checkpoints",
        ) from error


def _load_matching(module: nn.Module, saved: Mapping[str, Any]) -> tuple[int, list[str]]:
    own = module.state_dict()
    fitting = {key: saved[key] for key, t in own.items() if key in saved and saved[key].shape == t.shape}
    module.load_state_dict(fitting, strict=False)
    return len(fitting), [key for key in own if key not in fitting]
