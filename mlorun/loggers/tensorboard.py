"""Metrics and pictures for TensorBoard, in the folder `tensorboard` of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from mlorun.errors import ConfigError
from mlorun.run.artifacts import is_picture, pixels
from mlorun.run.events import Event, Result, RunFacts


@final
class TensorBoardLogger:
    """Scalars by problem and metric, `eval/` and `hypergradient/` before those that are no training metrics; and
    artifacts that are pictures.

    Raises ConfigError where tensorboard is not installed: pip install "mlorun[tensorboard]".
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                "tensorboard is not installed", where="logger=tensorboard", fix='pip install "mlorun[tensorboard]"'
            ) from error
        self._make = SummaryWriter
        self._writer: Any = None

    def start(self, facts: RunFacts) -> None:
        """Open the folder; what comes from a checkpoint's step on replaces what came after it before."""
        self._writer = self._make(str(facts.folder / "tensorboard"), purge_step=facts.position() + 1)

    def event(self, event: Event) -> None:
        """Add a point to each curve."""
        before = "" if event.kind == "train" else f"{event.kind}/"
        for name, value in event.metrics.items():
            self._writer.add_scalar(f"{before}{event.source}/{name}", value, event.step)

    def artifact(self, step: int, name: str, value: Any, path: Path) -> None:
        """Add a picture."""
        if hasattr(value, "savefig"):
            self._writer.add_figure(name, value, step, close=False)
        elif is_picture(value):
            self._writer.add_image(name, pixels(value), step)

    def end(self, result: Result | None) -> None:
        """Write what is left, and close."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
