"""The peak of live tensors."""

from __future__ import annotations

import torch

from mlorun.verify.memory import PeakMemory


def test_the_peak_is_what_was_alive_at_once() -> None:
    with PeakMemory() as memory:
        a = torch.ones(1000)  # 4000 bytes
        b = a + a
        del b
        c = a * 2
        view = c[:10]
    assert memory.peak == 8000
    assert memory.live == 8000
    del a, c
    assert memory.live == 4000  # the view keeps its base
    assert len(view) == 10


def test_what_was_there_before_does_not_count() -> None:
    x = torch.ones(1000)
    with PeakMemory() as memory:
        x.add_(1)
        assert x.view(10, 100).shape == (10, 100)
    assert memory.peak == 0


def test_what_a_graph_holds_counts() -> None:
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory() as memory:
        loss = x.exp().exp().sum()
        held = memory.live
        loss.backward()
    assert held >= 8000
    assert memory.live <= 4100  # the gradient, and the loss
