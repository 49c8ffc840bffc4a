"""What is kept of an inner loop: whole strides go from the front, and a new loop starts with none let go."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlorun.core.replay.history import History
from mlorun.hypergradient.inner_loop import Checkpointing, RecordedUpdate

UPDATE = RecordedUpdate((), (), {}, None)


def recorded(count: int, steps: int | None, stride: int) -> History:
    history = History(Checkpointing(steps, "sqrt"))
    for _ in range(count):
        history.updates.append(UPDATE)
        history.trim(stride)
    return history


@pytest.mark.parametrize(
    ("count", "steps", "stride", "kept", "first"),
    [(5, None, 1, 5, 0), (5, 2, 1, 2, 0), (5, 2, 2, 3, 1), (7, 3, 4, 3, 0), (6, 3, 4, 6, 3)],
)
def test_whole_strides_go_from_the_front_as_long_as_enough_are_left(
    count: int, steps: int | None, stride: int, kept: int, first: int
) -> None:
    history = recorded(count, steps, stride)
    loop = history.inner_loop
    assert (len(loop.updates), loop.first, history.dropped) == (kept, first, count - kept)
    assert loop.whole == (count == kept)


def test_a_new_inner_loop_is_whole_again() -> None:
    history = recorded(5, 2, 1)
    history.tangents = "of the old loop"
    history.restart()
    history.updates.append(UPDATE)
    assert history.inner_loop.whole
    assert history.tangents is None


def test_what_was_let_go_is_remembered() -> None:
    history, other = recorded(5, 2, 1), History(Checkpointing(2, "sqrt"))
    packed: dict[str, Any] = history.pack()
    other.unpack(packed)
    assert other.inner_loop == history.inner_loop
    assert not other.inner_loop.whole


def test_the_point_before_a_step_and_its_rates_come_back() -> None:
    history, other = History(before=(torch.ones(2),), rates=(torch.tensor(0.1),)), History()
    other.unpack(history.pack())
    assert (other.before, other.rates) == (history.before, history.rates)
