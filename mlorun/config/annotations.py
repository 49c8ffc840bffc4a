"""What a callable accepts, and whether a config value fits an annotation. Where that is unknown, it does."""

from __future__ import annotations

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union

_SEQUENCES = (
    list,
    tuple,
    set,
    collections.abc.Sequence,
    collections.abc.Iterable,
    collections.abc.Collection,
)
_MAPPINGS = (dict, collections.abc.Mapping)


@dataclass(frozen=True)
class Arguments:
    """Parameters that a keyword can set, in order; their types if known; whether any other is taken."""

    parameters: Mapping[str, inspect.Parameter]
    types: Mapping[str, Any]
    open: bool

    @property
    def required(self) -> tuple[str, ...]:
        """Names without a default."""
        empty = inspect.Parameter.empty
        return tuple(name for name, parameter in self.parameters.items() if parameter.default is empty)


def arguments(target: Callable[..., Any]) -> Arguments | None:
    """What a function, or a class's constructor, takes by keyword; None where Python cannot tell.

    A constructor that takes `**kwargs` is followed up its bases, which is where it passes them on to.
    """
    parameters: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for function in _chain(target):
        try:
            own = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError):
            return None
        if inspect.isclass(target) and function is not target:
            own = own[1:]  # self
        own_hints = _hints(function)
        for parameter in own:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                parameters.setdefault(parameter.name, parameter)
                if parameter.name in own_hints:
                    hints.setdefault(parameter.name, own_hints[parameter.name])
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            return Arguments(parameters, hints, open=False)
    return Arguments(parameters, hints, open=True)


def _chain(target: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The function itself; for a class, its constructor and those of its bases."""
    if not inspect.isclass(target):
        return [target]
    own = [kind for kind in target.__mro__ if kind is not object]
    chain = [vars(kind)["__init__"] for kind in own if "__init__" in vars(kind)]
    # without an __init__ anywhere, inspect reads __new__ or the metaclass
    return chain or [target]


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations as types; those that only a type checker can read are left out."""
    try:
        return typing.get_type_hints(function)
    except Exception:  # one of them is imported only for type checkers
        # names of these two modules are the usual ones
        scope = {
            **vars(collections.abc),
            **vars(typing),
            **getattr(inspect.unwrap(function), "__globals__", {}),
        }
        return {name: kind for name, text in _annotations(function).items() if (kind := _evaluated(text, scope))}


def _annotations(function: Callable[..., Any]) -> dict[str, Any]:
    annotations: dict[str, Any] = getattr(inspect.unwrap(function), "__annotations__", {})
    return annotations


def _evaluated(annotation: Any, scope: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, scope)
    except Exception:
        return None


def fits(value: Any, annotation: Any) -> bool:
    """Whether a value of a plain config fits an annotation; True where that is unknown."""
    origin, items = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (Union, types.UnionType):
        return any(fits(value, option) for option in items)
    if origin is Literal:
        return value in items
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if annotation in (str, bool):
        return isinstance(value, annotation)
    if (origin or annotation) in _SEQUENCES:
        return isinstance(value, list) and _items_fit(value, origin, items)
    if (origin or annotation) in _MAPPINGS:
        return isinstance(value, dict)
    if not inspect.isclass(annotation):
        return True
    # a tensor, a module: nothing that YAML can write; an object of ours: a node with a _target_
    package = annotation.__module__.partition(".")[0]
    return package != "torch" and (package != "mlorun" or isinstance(value, dict))


def _items_fit(value: list[Any], origin: Any, items: tuple[Any, ...]) -> bool:
    if not items:
        return True
    if origin is tuple and Ellipsis not in items:
        return len(value) == len(items) and all(map(_item_fits, value, items))
    return all(_item_fits(item, items[0]) for item in value)


def _item_fits(item: Any, annotation: Any) -> bool:
    # a node with a _target_ becomes something else before it is passed
    return (isinstance(item, dict) and "_target_" in item) or fits(item, annotation)


def shown(annotation: Any) -> str:
    """An annotation as a reader would write it."""
    text = annotation.__name__ if inspect.isclass(annotation) and not typing.get_args(annotation) else str(annotation)
    for noise in ("typing.", "collections.abc.", "torch."):
        text = text.replace(noise, "")
    return text.replace("NoneType", "None")
