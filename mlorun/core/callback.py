"""What may be hung on a run: called between global steps, and able to end it with a reason."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlorun.core.engine import Engine


class Callback(ABC):  # noqa: B024
    """Override what is needed. `engine.stop(reason)` ends the run after the step at hand; the reason is recorded.

    A callback only looks: it draws no random numbers from the global generators and changes no parameter, or the run is
    no longer the one that its config describes.
    """

    def check(self, engine: Engine) -> None:  # noqa: B027
        """Before anything is written: raise ConfigError where this program lacks what the callback needs."""

    def on_run_start(self, engine: Engine) -> None:  # noqa: B027
        """Before the first global step of this run; `engine.step_count` is not 0 where it goes on from a state."""

    def on_step_end(self, engine: Engine) -> None:  # noqa: B027
        """After every global step, before its report and its evaluation. Must not wait for the device."""

    def on_report(self, engine: Engine, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """After a report: the newest metrics of every problem, {"classifier/loss": 0.3, ...}."""

    def on_evaluation(self, engine: Engine, metrics: Mapping[str, float]) -> None:  # noqa: B027
        """After an evaluation: {"test/accuracy": 95.4, ...}."""

    def on_step_complete(self, engine: Engine) -> None:  # noqa: B027
        """After every global step, its report and its evaluation: all that a saved state has to hold has happened."""

    def on_run_end(self, engine: Engine) -> None:  # noqa: B027
        """After the last global step, however it ended, and before the final state is saved."""

    def state_dict(self) -> Mapping[str, Any]:
        """What it keeps between calls, as plain containers, numbers, texts and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from what `state_dict` gave."""
