"""The references' own door to torch's autograd: they share nothing with what they judge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlorun.hypergradient.vectors import Vector


def partial_gradients(
    value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """d value / d inputs for a () value; None for an input that it does not depend on."""
    if not value.requires_grad or not inputs:
        return (None,) * len(inputs)
    return torch.autograd.grad(
        value, inputs, create_graph=create_graph, retain_graph=create_graph or retain_graph, allow_unused=True
    )


def gradient(
    value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False, retain_graph: bool = False
) -> Vector:
    """The same with zeros for an input that the value does not depend on."""
    parts = partial_gradients(value, inputs, create_graph=create_graph, retain_graph=retain_graph)
    return tuple(torch.zeros_like(x) if g is None else g for x, g in zip(inputs, parts, strict=True))


def leaves(x: Sequence[Tensor]) -> Vector:
    """The same values outside of any graph, ready to be differentiated in."""
    return tuple(t.detach().requires_grad_() for t in x)
