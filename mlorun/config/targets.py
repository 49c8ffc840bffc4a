"""The objects that `_target_`s name: only in trusted packages; a mistyped name gets the nearest right one."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from mlorun.errors import ConfigError, did_you_mean, nearest

_MOST = 20  # names that a fix lists at most


def locate(target: Any, where: str, roots: Sequence[str]) -> Callable[..., Any]:
    """What a `_target_` names. Raises ConfigError: not there, not callable, or not in a trusted package.

    The package is checked before anything is imported, because an import runs code.
    """
    path = f"{where}._target_"
    if not isinstance(target, str) or not all(part.isidentifier() for part in target.split(".")):
        raise ConfigError("a _target_ is the dotted name of a class or function", where=path, seen=repr(target))
    first, *rest = target.split(".")
    if first not in roots:
        raise _untrusted(target, first, path, roots)
    named: Any = _module(first, target, path)
    if named is None:
        raise ConfigError(f"there is no package {first!r}", where=path, seen=target, fix=_absent(first))
    for depth, name in enumerate(rest, start=1):
        below = _below(named, name, ".".join((first, *rest[:depth])), target, path)
        if below is None:
            parent = ".".join((first, *rest[: depth - 1]))
            raise ConfigError(f"{parent} has no {name!r}", where=path, seen=target, fix=_fix(named, name))
        named = below
        # torch.os.system begins with torch, and os is not part of torch
        if inspect.ismodule(named) and named.__name__.split(".")[0] not in roots:
            raise _untrusted(target, named.__name__.split(".")[0], path, roots)
    if not callable(named):
        raise ConfigError(f"{target} is not a class or function", where=path, seen=f"a {type(named).__name__}")
    package = str(getattr(named, "__module__", None) or first).split(".")[0]
    if package not in roots:
        raise _untrusted(target, package, path, roots)
    return named  # type: ignore[no-any-return]


def _untrusted(target: str, package: str, path: str, roots: Sequence[str]) -> ConfigError:
    near = nearest(package, roots)
    fix = f"'trusted_packages=[{package}]' if you trust its code"
    return ConfigError(
        f"{package} is not a trusted package",
        where=path,
        seen=f"{target}; trusted are {', '.join(roots)}",
        fix=f"did you mean {near}? Else {fix}" if near else fix,
    )


def _absent(package: str) -> str:
    if package == "recipes":
        return "make a folder ./recipes with your own problems, or name one of ours: mlorun.recipes"
    return f"install {package}, or start mlorun in the folder that holds it"


def _below(parent: Any, name: str, full: str, target: str, path: str) -> Any:
    """The attribute or submodule of this name; None where there is neither."""
    if name in vars(parent) or not inspect.ismodule(parent):
        return getattr(parent, name, None)
    module = _module(full, target, path)
    return getattr(parent, name, None) if module is None else module


def _module(name: str, target: str, path: str) -> ModuleType | None:
    """The module of this name; None where there is none. Raises ConfigError for one that does not import."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # the module itself, or a package above it, is not there; else it is one that the module imports
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            return None
        raise _broken(name, target, path, error) from error
    except (Exception, SystemExit) as error:  # raised by a user's module when it is imported
        raise _broken(name, target, path, error) from error


def _broken(name: str, target: str, path: str, error: BaseException) -> ConfigError:
    lines = str(error.msg if isinstance(error, SyntaxError) else error).splitlines()
    seen = f"{type(error).__name__}: {lines[0] if lines else ''}"
    if isinstance(error, SyntaxError):
        seen += f" ({error.filename}, line {error.lineno})"
    return ConfigError(
        f"{name} does not import", where=path, seen=seen, fix=f"correct it; python -c 'import {name}' shows the error"
    )


def _fix(parent: Any, name: str) -> str:
    """What to write in place of a name that the parent does not have."""
    suggestion = _suggestion(parent, name)
    if getattr(parent, "__name__", None) != "recipes" or suggestion.startswith("did you mean"):
        return suggestion
    return f"put your classes into recipes/{name}.py in this folder; {suggestion}"


def _suggestion(parent: Any, name: str) -> str:
    """The nearest name that the parent has; all of them where they are few."""
    known = {other for other in vars(parent) if not other.startswith("_")}
    if inspect.ismodule(parent):
        known = {other for other in known if _is_own(getattr(parent, other), parent)}
        known |= {module.name for module in pkgutil.iter_modules(getattr(parent, "__path__", ()))}
    if len(known) <= _MOST:
        return did_you_mean(name, known)
    match = nearest(name, known)
    return f"did you mean {match}?" if match else f"no name is near; see python -c 'help({parent.__name__})'"


def _is_own(attribute: Any, parent: ModuleType) -> bool:
    """Whether a module's attribute is defined below the same package, and not only imported there."""
    if inspect.ismodule(attribute):
        return attribute.__name__.startswith(parent.__name__)
    home = str(getattr(attribute, "__module__", "") or "")
    return callable(attribute) and home.split(".")[0] == parent.__name__.split(".")[0]
