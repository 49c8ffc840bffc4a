"""Forward-mode differentiation as estimators need it: stop-gradients stop tangents, and constants are cheap."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

_NAMES = ("add", "sub", "mul", "div", "true_divide", "multiply", "subtract", "divide")
_OPERATORS = ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__")
# elementwise functions of two operands; the operators are slots of Tensor alone
_BINARY = frozenset(
    [getattr(home, name) for name in _NAMES for home in (torch, Tensor)]
    + [getattr(Tensor, name) for name in _OPERATORS]
)


@cache
def load_rules() -> None:
    """Let torch load its forward-mode rules, once, without the warning that it gives about itself on the way."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        # torch.jit's deprecation: a FutureWarning now, a DeprecationWarning before torch 2.12
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        forward_ad.make_dual(torch.zeros(()), torch.zeros(()))


class InnerDerivative(Exception):
    """A loss differentiates by itself what a short rule has left without the graph of its tangents."""


class StopGradientMode(TorchFunctionMode):
    """Active around a loss that is evaluated on duals.

    short_rules   linear layers by the rule below. Their output has a tangent, but its graph leads to values without
                  tangents, so that a loss that calls torch.autograd.grad itself (a gradient penalty) would lose them:
                  such a loss raises InnerDerivative, and is to be evaluated again without short rules.

    torch.no_grad does not stop tangents by itself, so a loss that stops gradients with it would be differentiated
    through. And where one operand of an elementwise operation has no tangent, torch works the result's shape out in
    Python, a quarter of a millisecond each time; a tangent of zeros goes the quick way. A linear layer's own rule
    copies the weights' tangent to another layout; two plain layers do not.
    """

    def __init__(self, *, short_rules: bool) -> None:
        super().__init__()
        self._short_rules = short_rules
        self._shortened = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.is_grad_enabled():
            with forward_ad._set_fwd_grad_enabled(False):
                return func(*args, **kwargs)
        if func in _BINARY and len(args) == 2 and not kwargs:
            return func(*_both_dual(*args))
        if func is F.linear and not kwargs and self._short_rules:
            self._shortened = True
            return _linear(*args)
        if func is torch.autograd.grad and self._shortened:
            raise InnerDerivative
        return func(*args, **kwargs)


def _both_dual(x: Any, y: Any) -> tuple[Any, Any]:
    """The operands, the constant one with a tangent of zeros if the other has a tangent."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return x, y
    if not (x.is_floating_point() and y.is_floating_point()):
        return x, y
    has_x, has_y = (forward_ad.unpack_dual(t).tangent is not None for t in (x, y))
    if has_x == has_y:
        return x, y
    if has_x:
        return x, forward_ad.make_dual(y, torch.zeros_like(y))
    return forward_ad.make_dual(x, torch.zeros_like(x)), y


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W' + b on duals: tangents by linear layers of their own."""
    (x, dx), (weight, dweight) = forward_ad.unpack_dual(x), forward_ad.unpack_dual(weight)
    bias, dbias = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    out = F.linear(x, weight, bias)
    if dweight is not None:
        tangent = F.linear(x, dweight, dbias)
        if dx is not None:
            tangent = tangent + F.linear(dx, weight)
    elif dx is not None:
        tangent = F.linear(dx, weight, dbias)
    elif dbias is not None:
        tangent = dbias.expand_as(out)
    else:
        return out
    dual: Tensor = forward_ad.make_dual(out, tangent)
    return dual
