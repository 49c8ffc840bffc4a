"""Methods that a class lacks, or overrides with other arguments than those it is called with. No torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from mlorun.errors import ConfigError, nearest


def faults(kind: type, where: str) -> Iterator[ConfigError]:
    """One fault for every abstract method that a class leaves out, and for every one that cannot be called as its
    base's is."""
    own = {name for base in kind.__mro__[:-1] for name in vars(base) if base.__module__ == kind.__module__}
    lacking: frozenset[str] = getattr(kind, "__abstractmethods__", frozenset())
    for name in sorted(lacking):
        near = nearest(name, own - lacking)
        yield ConfigError(
            f"{kind.__name__} has no {name}",
            where=where,
            fix=f"{near} is to be called {name}" if near else f"def {name}{_arguments(getattr(kind, name))}: ...",
        )
    for name in sorted(own):
        method = vars(kind).get(name)
        base = next((vars(one)[name] for one in kind.__mro__ if name in vars(one) and _is_called(one)), None)
        if name.startswith("_") or not inspect.isfunction(method) or not inspect.isfunction(base):
            continue
        wanted = [p for p in inspect.signature(base).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
        try:
            inspect.signature(method).bind(*wanted)
        except TypeError as error:
            yield ConfigError(
                f"{kind.__name__}.{name} cannot be called as it will be: {error}",
                where=f"{inspect.getsourcefile(method)}:{method.__code__.co_firstlineno}",
                seen=f"def {name}{_arguments(method)}",
                fix=f"def {name}{_arguments(base)}",
            )


def _is_called(base: type) -> bool:
    """Whether mlorun calls the methods of this class: a Problem or a Callback, and not a recipe's own base."""
    return base.__module__.startswith("mlorun.core.")


def of_base(kind: type, title: str) -> set[str]:
    """The names that a base of this title gives to a class."""
    return {name for base in kind.__mro__ if base.__name__ == title for name in vars(base) if name[0] != "_"}


def _arguments(function: object) -> str:
    return f"({', '.join(inspect.signature(function).parameters)})"  # type: ignore[arg-type]
