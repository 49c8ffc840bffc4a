"""How fast a run goes, and how long it will take, from readings of its step counter."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import final


@final
class Speed:
    """Steps per second over the last `window_seconds`: rides out an evaluation, follows a lasting change."""

    def __init__(self, window_seconds: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._window = window_seconds
        self._clock = clock
        self._readings: deque[tuple[float, int]] = deque()

    def read(self, step: int) -> float | None:
        """Note where the run is now; its speed, or None as long as it has not moved."""
        now = self._clock()
        self._readings.append((now, step))
        while now - self._readings[0][0] > self._window and len(self._readings) > 2:
            self._readings.popleft()
        then, first = self._readings[0]
        return (step - first) / (now - then) if step > first and now > then else None


def say_speed(steps_per_second: float | None) -> str:
    """`489 steps/s`, `2.4 steps/s`, or where a step takes longer than a second, `3.1 s/step`."""
    if not steps_per_second:
        return "- steps/s"
    if steps_per_second < 1:
        return f"{1 / steps_per_second:.1f} s/step"
    return f"{steps_per_second:,.{0 if steps_per_second >= 10 else 1}f} steps/s"


def say_time(seconds: float) -> str:
    """`0:07`, `12:07`, `1:12:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def time_left(step: int, total: int, steps_per_second: float | None) -> str:
    """`0:07 left`, or `-:-- left` where it cannot be known."""
    return f"{say_time((total - step) / steps_per_second)} left" if steps_per_second else "-:-- left"
