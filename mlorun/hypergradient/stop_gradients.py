"""Stop-gradients held: what a loss takes out of its graph is put in again as it was when it is evaluated elsewhere.

A difference of evaluations sees through `detach`; one of evaluations under `held` does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import CodeType
from typing import Any, Literal

import torch
from torch import Tensor
from torch._C._functorch import get_unwrapped, is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


class StopGradients:
    """The values that one evaluation of a loss, a function of leaves that require gradients, stopped gradients of.

    A stop-gradient is any function with an argument that requires a gradient and a result, a tensor or a number, that
    does not: detach, what happens under no_grad, item, an inner gradient without create_graph.
    """

    def __init__(self, loss: Callable[[], Tensor]) -> None:
        self._values: list[Any] = []
        with _Mode("record", self._values):
            loss()

    def held(self) -> AbstractContextManager[Any]:
        """Around another evaluation of the same loss, at other parameters that require gradients."""
        return _Mode("hold", self._values)


class _Mode(TorchFunctionMode):
    def __init__(self, does: Literal["record", "hold"], values: list[Any]) -> None:
        super().__init__()
        self._does = does
        self._values = values
        self._next: Iterator[Any] = iter(values)
        self._kernels = _forward_codes()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        versions = [_version(x) for x in given]
        result = func(*args, **kwargs)
        if not any(isinstance(x, Tensor) and _tracked(x) for x in given) or self._in_kernel():
            return result
        untouched = [x for x, version in zip(given, versions, strict=True) if _version(x) == version]
        return tree_map(lambda part: self._passed(part, given, untouched), result)

    def _passed(self, part: Any, given: list[Any], untouched: list[Any]) -> Any:
        if isinstance(part, Tensor):
            if any(part is x for x in untouched):  # handed on as it was, as by x.to(y)
                return part
            if _tracked(part) or not (part.is_floating_point() or part.is_complex()):
                return part
        elif not isinstance(part, float):
            return part
        if self._does == "record":
            self._values.append(part.detach().clone() if isinstance(part, Tensor) else part)
            return part
        try:
            value = next(self._next)
        except StopIteration:
            raise RuntimeError("a loss stops more gradients than at the evaluation before") from None
        if not isinstance(part, Tensor):
            return value
        if any(part is x for x in given):  # in place, or by out=
            with torch.no_grad():
                return part.copy_(value)
        return value.clone()

    def _in_kernel(self) -> bool:
        """Whether a torch.autograd.Function is at work, whose forward pass runs without gradients, and has its own."""
        if torch.is_grad_enabled():
            return False
        frame = sys._getframe(2)
        while frame is not None:
            if frame.f_code in self._kernels:
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False


def _tracked(x: Tensor) -> bool:
    """Whether a gradient flows through: to a leaf, or, under a transform of torch.func, to what the transform is of."""
    while not x.requires_grad and is_functorch_wrapped_tensor(x):
        x = get_unwrapped(x)
    return x.requires_grad


def _version(x: Any) -> int | None:
    """How often a tensor was written in place."""
    return x._version if isinstance(x, Tensor) and not x.is_inference() else None


def _forward_codes() -> frozenset[CodeType]:
    codes = set()
    kinds = [torch.autograd.Function]
    while kinds:
        kind = kinds.pop()
        kinds.extend(kind.__subclasses__())
        code = getattr(kind.__dict__.get("forward"), "__func__", kind.__dict__.get("forward"))
        if isinstance(getattr(code, "__code__", None), CodeType):
            codes.add(code.__code__)  # type: ignore[union-attr]
    return frozenset(codes)
