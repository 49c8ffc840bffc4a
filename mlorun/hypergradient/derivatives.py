"""The one door to autograd: gradients, pull-backs, directional derivatives, mixed products and their differences.

Every estimator differentiates through here, so that a counter, a tracer or a reduction over processes has one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor
from torch.autograd import forward_ad

from mlorun.hypergradient import vectors
from mlorun.hypergradient.forward_ad import InnerDerivative, StopGradientMode, load_rules
from mlorun.hypergradient.vectors import Vector

# (values, inputs, cotangents of the values) to cotangents of the inputs
PullBack = Callable[[Vector, Vector, Vector], Sequence[Tensor]]
# what autograd raises for a kernel without the derivative that was asked for
Unsupported = (NotImplementedError, RuntimeError)
# words of these errors
_MISSING = (
    "not implemented",
    "once_differentiable",
    "forward AD",
    "does not support",
    "does not currently support",
    "double backwards",
)

# a graph made by torch.compile may be differentiated again: it must not give its buffers away
torch._functorch.config.donated_buffer = False


def is_missing(error: BaseException) -> bool:
    """Whether autograd says with this error that a kernel lacks a derivative."""
    return isinstance(error, Unsupported) and any(word in str(error) for word in _MISSING)


def accumulate(loss: Tensor, parameters: Sequence[Tensor]) -> None:
    """Add d loss / d parameters to their `.grad`. Frees the graph of `loss`, ()."""
    loss.backward(inputs=list(parameters))


def partial_gradients(
    value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor | None, ...]:
    """d value / d inputs for a () value; None for an input that it does not depend on. Frees the graph of `value`,
    unless `create_graph`."""
    if not value.requires_grad or not inputs:
        return (None,) * len(inputs)
    return torch.autograd.grad(value, inputs, create_graph=create_graph, allow_unused=True)


def gradient(value: Tensor, inputs: Sequence[Tensor], *, create_graph: bool = False) -> Vector:
    """As `partial_gradients`, with zeros for an input that the value does not depend on."""
    return vectors.filled(partial_gradients(value, inputs, create_graph=create_graph), inputs)


def depends_on(value: Tensor, inputs: Sequence[Tensor]) -> bool:
    """Whether the graph of `value` reaches any of the inputs. Keeps the graph."""
    if not value.requires_grad:
        return False
    grads = torch.autograd.grad(value.sum(), inputs, retain_graph=True, allow_unused=True)
    return any(grad is not None for grad in grads)


def pull_back(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    retain_graph: bool = False,
    create_graph: bool = False,
) -> Vector:
    """cotangents^T d outputs / d inputs, input-shaped (a vector-Jacobian product); zeros where nothing depends."""
    live = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not live or not inputs:
        return vectors.zeros_like(inputs)
    ys, cs = zip(*live, strict=True)
    grads = torch.autograd.grad(
        ys, inputs, cs, retain_graph=retain_graph or create_graph, create_graph=create_graph, allow_unused=True
    )
    return vectors.filled(grads, inputs)


class _Known(torch.autograd.Function):
    """Values that are computed elsewhere, with a pull-back that is differentiated in turn."""

    @staticmethod
    def forward(ctx: Any, pulled: PullBack, count: int, *tensors: Tensor) -> Vector:
        outputs = tuple(t.clone() for t in tensors[:count])
        ctx.pulled, ctx.count = pulled, count
        ctx.save_for_backward(*outputs, *tensors[count:])
        return outputs

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Any, ...]:
        outputs, inputs = ctx.saved_tensors[: ctx.count], ctx.saved_tensors[ctx.count :]
        return None, None, *([None] * ctx.count), *ctx.pulled(outputs, inputs, cotangents)


def with_pull_back(values: Vector, inputs: Sequence[Tensor], pulled: PullBack) -> Vector:
    """`values` as a function of `inputs` whose vector-Jacobian product is `pulled`.

    pulled   (values, inputs, cotangents) to input-shaped products; called with gradients enabled where the product is
             to be differentiated again, and then made of operations on these very tensors
    """
    return tuple(_Known.apply(pulled, len(values), *vectors.detach(values), *inputs))


def push_forward(
    function: Callable[[Vector], Sequence[Tensor]], point: Sequence[Tensor], direction: Sequence[Tensor]
) -> Vector:
    """d function(point) along `direction`, output-shaped (a Jacobian-vector product, by forward mode), outside of any
    graph; zeros where nothing depends."""
    load_rules()
    with torch.no_grad(), forward_ad.dual_level():
        outputs = function(tuple(forward_ad.make_dual(x.detach(), dx) for x, dx in zip(point, direction, strict=True)))
        tangents = tuple(forward_ad.unpack_dual(y).tangent for y in outputs)
        return tuple(torch.zeros_like(y) if dy is None else dy.clone() for y, dy in zip(outputs, tangents, strict=True))


def mixed_product(
    function: Callable[[Vector], Tensor], point: Vector, direction: Vector, inputs: Sequence[Tensor]
) -> Vector:
    """(d2 f / d inputs d point)^T direction, input-shaped: forward over reverse (Pearlmutter 1994).

    `function` maps the point to a () tensor with a graph over `inputs`. Its directional derivative by forward mode, in
    which stop-gradients are honoured, then the gradient of that number.
    """
    load_rules()
    try:
        return _mixed_product(function, point, direction, inputs, short_rules=True)
    except InnerDerivative:
        return _mixed_product(function, point, direction, inputs, short_rules=False)


def _mixed_product(
    function: Callable[[Vector], Tensor],
    point: Vector,
    direction: Vector,
    inputs: Sequence[Tensor],
    *,
    short_rules: bool,
) -> Vector:
    with forward_ad.dual_level():
        duals = tuple(forward_ad.make_dual(x, dx) for x, dx in zip(point, direction, strict=True))
        with StopGradientMode(short_rules=short_rules):
            value = function(duals)
        slope = forward_ad.unpack_dual(value).tangent
        return vectors.zeros_like(inputs) if slope is None else gradient(slope, inputs)


def central_difference(
    function: Callable[[Vector], Vector], point: Vector, direction: Vector, radius: float | Tensor
) -> Vector:
    """(function(point + eps direction) - function(point - eps direction)) / (2 eps), eps = radius / norm(direction).

    Two evaluations. The error is O(radius^2) above, rounding / radius below; a direction of 0 gives 0, not 0 / 0.
    """
    length = vectors.norm(direction)
    eps = radius / length.clamp_min(torch.finfo(length.dtype).tiny ** 0.5)
    shift = vectors.scale(direction, eps)
    ahead, behind = (function(vectors.add(point, shift, alpha=sign)) for sign in (1.0, -1.0))
    return vectors.scale(vectors.add(ahead, behind, alpha=-1.0), 0.5 / eps)


def difference_radius(point: Vector) -> Tensor:
    """A radius for a central difference at `point`, (): where its two errors are about alike, 0.01 norm(point) in
    float32."""
    length = vectors.norm(point)
    eps = max(torch.finfo(t.dtype).eps for t in point)
    radius: Tensor = torch.where(length > 0, length, torch.ones_like(length)) * (2 * eps ** (1 / 3))
    return radius


def jacobian_rows(outputs: Vector, inputs: Mapping[str, Vector]) -> list[Vector]:
    """d outputs / d q for every scalar q of the inputs, in order, each shaped as the outputs.

    One pull-back, which is linear in its cotangent u, differentiated in u once for every q.
    """
    flat = tuple(t for vector in inputs.values() for t in vector)
    zero = vectors.zeros_like(outputs)
    along = tuple(t.requires_grad_() for t in vectors.zeros_like(outputs))
    live = [(y, u) for y, u in zip(outputs, along, strict=True) if y.requires_grad]
    if not live:
        return [zero] * sum(t.numel() for t in flat)
    ys, us = zip(*live, strict=True)
    pulled = torch.autograd.grad(ys, flat, us, create_graph=True, retain_graph=True, allow_unused=True)
    rows: list[Vector] = []
    for t, g in zip(flat, pulled, strict=True):
        if g is None or not g.requires_grad:
            rows.extend([zero] * t.numel())
            continue
        for entry in g.reshape(-1):
            rows.append(vectors.filled(torch.autograd.grad(entry, along, retain_graph=True, allow_unused=True), along))
    return rows
