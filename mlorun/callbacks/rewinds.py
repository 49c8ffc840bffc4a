"""Going back to the last checkpoint with smaller steps, where a run meets NaN or infinity: the policy `rewind`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from mlorun.core.callback import Callback
from mlorun.core.engine import Engine
from mlorun.errors import NonFiniteError

log = logging.getLogger("mlorun.run")


class Rewinds(Callback):
    """Counts how often a run went back; its state says how often until then.

    most     how often it may; 0 is never
    factor   what every learning rate is multiplied by each time, in (0, 1); a rate that an upper problem learns stays
    """

    def __init__(self, most: int, factor: float) -> None:
        self.most = most
        self.factor = factor
        self.steps: list[int] = []  # where the numbers broke, each time

    def rewind(self, engine: Engine, error: NonFiniteError, load: Callable[[], int]) -> bool:
        """Load the newest checkpoint into the engine, and make its steps smaller; False where that is done too often.

        error   why; says how often, where it was too often
        load    puts the newest good checkpoint into engine and callbacks, this one too; its step
        """
        if not self.most:
            return False
        steps = [*self.steps, engine.step_count]
        if len(steps) > self.most:
            before = f"went back {self.most} times before, from {_listed(self.steps)}"
            error.seen = before if error.seen is None else f"{error.seen}; {before}"
            return False
        interrupted = engine.interrupted
        step = load()
        since = len(steps) - len(self.steps)  # times since that checkpoint was saved
        self.steps = steps
        for problem in engine.problems.values():
            problem.update.scale_rates(self.factor**since)
        log.warning(
            "%s (%s): back to step %s, with learning rates %.3g times as large",
            error.message,
            error.where,
            f"{step:,}",
            self.factor**since,
        )
        if interrupted:  # the signal came before
            engine.stop()
        return True

    @property
    def remark(self) -> str | None:
        """For a person, at the end."""
        if not self.steps:
            return None
        times = "once" if len(self.steps) == 1 else f"{len(self.steps)} times"
        rate = self.factor ** len(self.steps)
        return f"went back {times}, from {_listed(self.steps)}; learning rates are now {rate:.3g} of the config's"

    def state_dict(self) -> Mapping[str, Any]:
        return {"steps": list(self.steps)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = list(state["steps"])


def _listed(steps: list[int]) -> str:
    return ("step " if len(steps) == 1 else "steps ") + ", ".join(f"{step:,}" for step in steps)
