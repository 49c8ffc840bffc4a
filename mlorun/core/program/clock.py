"""What a loss may ask of time: how many global steps were done before it, the same when it is evaluated again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Clock:
    """step   global steps done before the evaluation at hand: of the present, or of the step that is replayed"""

    step: int = 0
