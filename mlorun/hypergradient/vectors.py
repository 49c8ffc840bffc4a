"""Vectors: one problem's trainable parameters, or anything of their shapes, and the algebra on them.

Nothing here records a graph or waits for the device: inner products and norms are () tensors. Reductions run in
float32 at least, whatever the parameters' type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Vector = tuple[Tensor, ...]


def detach(x: Sequence[Tensor]) -> Vector:
    """The same values outside of any graph; memory is shared."""
    return tuple(t.detach() for t in x)


def copy(x: Sequence[Tensor]) -> Vector:
    """The same values in memory of their own."""
    return tuple(t.detach().clone() for t in x)


def versions(x: Sequence[Tensor]) -> tuple[int, ...]:
    """How often each was written in place; as torch counts it, not through `.data`."""
    return tuple(t._version for t in x)


def leaves(x: Sequence[Tensor]) -> Vector:
    """The same values as leaves that require a gradient; memory is shared."""
    return tuple(t.detach().requires_grad_() for t in x)


def zeros_like(x: Sequence[Tensor]) -> Vector:
    return tuple(torch.zeros_like(t) for t in x)


def filled(grads: Sequence[Tensor | None], like: Sequence[Tensor]) -> Vector:
    """Gradients as autograd returns them, with None (unused) made zero."""
    return tuple(torch.zeros_like(t) if g is None else g for g, t in zip(grads, like, strict=True))


@torch.no_grad()
def add(x: Vector, y: Vector, alpha: float | Tensor = 1.0) -> Vector:
    """x + alpha y."""
    if isinstance(alpha, Tensor):
        return tuple(torch._foreach_add(x, torch._foreach_mul(y, alpha)))
    return tuple(torch._foreach_add(x, y, alpha=alpha))


@torch.no_grad()
def scale(x: Vector, alpha: float | Tensor) -> Vector:
    """alpha x."""
    return tuple(torch._foreach_mul(x, alpha))


@torch.no_grad()
def scale_each(x: Vector, alphas: Sequence[Tensor]) -> Vector:
    """alpha_i x_i, one () tensor for each parameter."""
    numbers = [a if t.dim() else a.to(t.dtype) for a, t in zip(alphas, x, strict=True)]
    return tuple(torch._foreach_mul(x, numbers))


def split(flat: Vector, like: Mapping[str, Sequence[Tensor]]) -> dict[str, Vector]:
    """The tensors of several vectors in one row, by the vectors' names; in the order of `like`."""
    rest = iter(flat)
    return {name: tuple(next(rest) for _ in vector) for name, vector in like.items()}


def flat(x: Vector) -> Tensor:
    """Every entry in one row, (P,)."""
    return torch.cat([t.reshape(-1) for t in x])


def shaped(row: Tensor, like: Vector) -> Vector:
    """The inverse of `flat`."""
    parts = torch.split(row, [t.numel() for t in like])
    return tuple(part.view_as(t) for part, t in zip(parts, like, strict=True))


def negate(x: Vector) -> Vector:
    return scale(x, -1.0)


@torch.no_grad()
def dot(x: Vector, y: Vector) -> Tensor:
    """<x, y>, ()."""
    return inner(x, y)


def inner(x: Vector, y: Vector) -> Tensor:
    """<x, y>, (), differentiable in both."""
    return torch.stack([torch.sum(_wide(a) * _wide(b)) for a, b in zip(x, y, strict=True)]).sum()


@torch.no_grad()
def cosine(x: Vector, y: Vector) -> Tensor:
    """<x, y> / (norm(x) norm(y)), (); NaN where one is 0."""
    return dot(x, y) / (norm(x) * norm(y))


@torch.no_grad()
def norm(x: Vector) -> Tensor:
    """The Euclidean norm, ()."""
    norms: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([_wide(t) for t in x])))
    return norms


@torch.no_grad()
def is_finite(x: Vector) -> Tensor:
    """Whether no entry is NaN or infinite, ()."""
    return torch.stack([t.isfinite().all() for t in x]).all()


def quotient(above: Tensor, below: Tensor, valid: Tensor) -> Tensor:
    """above / below where valid, else 0."""
    one = torch.ones_like(below)
    return torch.where(valid, above / torch.where(valid, below, one), torch.zeros_like(above))


def _wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t
