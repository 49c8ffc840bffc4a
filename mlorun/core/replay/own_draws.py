"""Random numbers of a loss that runs in another precision: those that it draws in its own, cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_NEW = frozenset({torch.rand, torch.randn, torch.normal})  # normal: where mean and deviation are numbers
_LIKE = frozenset({torch.rand_like, torch.randn_like})
_OF = frozenset({torch.normal, torch.bernoulli, Tensor.bernoulli})
_IN_PLACE = frozenset(
    {Tensor.normal_, Tensor.uniform_, Tensor.exponential_, Tensor.log_normal_, Tensor.cauchy_, Tensor.geometric_}
)


class OwnDraws(TorchFunctionMode):
    """Around a loss in precision `wide` whose own is `own`.

    The generators are the same, but what they give for one state differs from one precision to another.
    """

    def __init__(self, own: torch.dtype, wide: torch.dtype) -> None:
        super().__init__()
        self._own = own
        self._wide = wide

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        wide = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dtype == self._wide]
        if func in _LIKE and (kwargs.get("dtype") or args[0].dtype) == self._wide:
            return func(*args, **{**kwargs, "dtype": self._own}).to(self._wide)
        if func in _OF and wide:
            args, kwargs = tuple(map(self._cast, args)), {key: self._cast(x) for key, x in kwargs.items()}
            return func(*args, **kwargs).to(self._wide)
        if func in _NEW and not wide and (kwargs.get("dtype") or torch.get_default_dtype()) == self._wide:
            return func(*args, **{**kwargs, "dtype": self._own}).to(self._wide)
        if func in _IN_PLACE and args[0].dtype == self._wide:
            return args[0].copy_(func(torch.empty_like(args[0], dtype=self._own), *args[1:], **kwargs))
        return func(*args, **kwargs)

    def _cast(self, x: Any) -> Any:
        return x.to(self._own) if isinstance(x, Tensor) and x.dtype == self._wide else x
