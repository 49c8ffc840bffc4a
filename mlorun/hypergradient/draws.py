"""Discrete draws that an upper problem's parameters decide, and the log-probabilities that REINFORCE needs of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributions import Distribution

_tapes: list[list[Tensor]] = []


def draw(distribution: Distribution) -> Tensor:
    """A sample, without a gradient, for a loss to use: `mask = draw(Bernoulli(logits=self.policy.module.logits))`.

    Under `taped`, its log-probability, (), summed over the sample, is noted with its graph.
    """
    with torch.no_grad():
        sample: Tensor = distribution.sample()
    if _tapes:
        _tapes[-1].append(distribution.log_prob(sample).sum())
    return sample


@contextmanager
def taped() -> Iterator[list[Tensor]]:
    """The log-probabilities of every draw inside, in order, each () with its graph."""
    tape: list[Tensor] = []
    _tapes.append(tape)
    try:
        yield tape
    finally:
        _tapes.pop()
