"""mlorun check OVERRIDES...: every mistake at once; builds, evaluates every loss once, trains nothing."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from mlorun.config.check import check
from mlorun.config.compose import attempted, explained
from mlorun.config.resolve import missing
from mlorun.core.program.graph import ProblemGraph
from mlorun.errors import ConfigError, faults_in, together


def main(args: list[str]) -> int:
    """Print that there are no mistakes. Raises ConfigErrors with all of them."""
    config, faults = attempted(args)
    if config is not None:
        # these report together; building needs all of them to be right
        parts = (check,) if missing(config) else (check, check_graph, check_device, check_home)
        faults += [fault for part in parts for fault in _faults(part, config)]
    if faults or config is None:
        raise together(faults)
    from mlorun.assemble import build, make_callbacks, make_loggers
    from mlorun.training import require_callbacks

    try:
        engine = build(config)
        make_loggers(config)
        callbacks = make_callbacks(config)
        engine.probe()
        require_callbacks(config, engine, callbacks)
    except Exception as error:
        from mlorun.run.endings import is_out_of_memory, of_config

        if is_out_of_memory(error):
            raise
        raise of_config(explained(error, args)) from error.__cause__
    sizes = ", ".join(f"{name} {sum(p.numel() for p in one.theta):,}" for name, one in engine.problems.items())
    print(f"{config.name}: no mistakes found; parameters: {sizes}")
    return 0


def check_graph(config: DictConfig) -> None:
    """Raise the GraphError of dependencies that do not make a problem graph."""
    if config.problems:
        ProblemGraph.build(tuple(config.problems), config.dependencies.u2l, config.dependencies.l2u)


def check_device(config: DictConfig) -> None:
    """Raise the DeviceError of a device or a precision that this machine lacks."""
    from mlorun.run.device import Precision, resolve_device  # imports torch, which is slow

    Precision(config.precision, resolve_device(config.device))


def check_home(config: DictConfig) -> None:
    """Raise the ConfigError of a name or a run.root that no run folder can have."""
    from mlorun.run.folder import require_home

    require_home(config.run.root, config.name)


def _faults(part: Callable[[DictConfig], None], config: DictConfig) -> tuple[ConfigError, ...]:
    try:
        part(config)
    except ConfigError as error:
        return faults_in(error)
    return ()
