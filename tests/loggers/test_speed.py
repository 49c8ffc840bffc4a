"""Speed and time left, as they are measured and as they are said."""

from __future__ import annotations

import pytest

from mlorun.loggers.speed import Speed, say_speed, say_time, time_left


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_there_is_no_speed_before_there_was_a_step() -> None:
    clock = Clock()
    speed = Speed(clock=clock)
    assert speed.read(0) is None
    clock.now += 5
    assert speed.read(0) is None


def test_a_resumed_run_is_not_credited_with_the_steps_of_the_one_before() -> None:
    clock = Clock()
    speed = Speed(clock=clock)
    speed.read(1000)
    clock.now += 2
    assert speed.read(1010) == 5.0


def test_speed_forgets_what_is_older_than_its_window() -> None:
    clock = Clock()
    speed = Speed(window_seconds=10, clock=clock)
    step = 0
    speed.read(step)
    for pace in [1] * 20 + [4] * 20:
        clock.now += 1
        step += pace
        found = speed.read(step)
    assert found == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("speed", "said"),
    [
        (None, "- steps/s"),
        (0.0, "- steps/s"),
        (489.4, "489 steps/s"),
        (12345.0, "12,345 steps/s"),
        (2.44, "2.4 steps/s"),
        (0.25, "4.0 s/step"),
    ],
)
def test_speeds_are_said_as_people_say_them(speed: float | None, said: str) -> None:
    assert say_speed(speed) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (727, "12:07"), (4327, "1:12:07")]
)
def test_times_are_said_as_a_clock_shows_them(seconds: float, said: str) -> None:
    assert say_time(seconds) == said


def test_time_left_is_what_remains_at_this_speed() -> None:
    assert time_left(20, 100, 4.0) == "0:20 left"
    assert time_left(20, 100, None) == "-:-- left"
