"""Stop-gradients held: what a loss detaches stays as it was, and nothing else is written."""

from __future__ import annotations

import torch

from mlorun.hypergradient.stop_gradients import StopGradients


def test_a_detached_factor_stays_as_it_was_and_an_argument_that_is_handed_on_is_not_written() -> None:
    data, x = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0], requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (data.to(x) * x * x.detach()).sum()

    graph = loss(x)
    stops, version = StopGradients(lambda: loss(x)), data._version
    away = (x + 1).detach().requires_grad_()
    with stops.held():
        moved = loss(away)
    assert moved.item() == 1 * 4 * 3 + 2 * 5 * 4, "the factor is that of the first evaluation"
    assert data._version == version, "data.to(x) is data itself"
    graph.backward()


def test_what_is_written_in_place_is_held_as_well() -> None:
    x = torch.tensor([3.0, 4.0], requires_grad=True)

    def loss(x: torch.Tensor) -> torch.Tensor:
        kept = torch.zeros(2)
        with torch.no_grad():
            kept.copy_(x)
        return (kept * x).sum()

    stops = StopGradients(lambda: loss(x))
    away = (x + 1).detach().requires_grad_()
    with stops.held():
        moved = loss(away)
    assert moved.item() == 3 * 4 + 4 * 5
