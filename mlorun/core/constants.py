"""What the steps of a lower problem leave behind without a gradient: to a hypergradient it is a constant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from mlorun.core.program.problem import Problem


@contextmanager
def statistics_read(problems: Mapping[str, Problem]) -> Iterator[set[str]]:
    """The problems whose running statistics a loss inside reads: BatchNorm layers called in evaluation mode."""
    read: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(partial(_note, read, name))
        for name, problem in problems.items()
        for module in problem.module.modules()
        if isinstance(module, _NormBase) and module.track_running_stats
    ]
    try:
        yield read
    finally:
        for hook in hooks:
            hook.remove()


def _note(read: set[str], name: str, module: nn.Module, inputs: object) -> None:
    if not module.training:
        read.add(name)
