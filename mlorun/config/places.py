"""What a `_target_` may name, by its place in the config: deny by default.

A config is data, and may come from a stranger. "Below torch" is not safe: torch offers functions that run commands. So
a module is a class of torch.nn, an optimizer one of torch.optim, and so on; by the true module and name of the object,
never by a private part, a method, or an attribute of an object. Code of the project's own (./recipes) and of packages
that a person trusts by name may stand anywhere. No torch is imported here: bases are known by their names.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlorun.config.targets import locate
from mlorun.errors import ConfigError

OWN = ("mlorun.recipes", "recipes")  # ours, and the project's: anything public in them
ROOTS = ("torch", "torchvision", "mlorun", "recipes")

_MODULE = "torch.nn.modules.module.Module"


@dataclass(frozen=True)
class Place:
    """One place.

    title      what stands there: "a module"
    packages   where its true module lies
    base       the class that it derives from, by its full name; None is any public class or function there
    """

    title: str
    packages: tuple[str, ...]
    base: str | None = None


MODULE = Place("a module", ("torch.nn", "torchvision.models"), _MODULE)
PLACES = {
    "module": MODULE,
    "optimizer": Place("an optimizer", ("torch.optim",), "torch.optim.optimizer.Optimizer"),
    "scheduler": Place("a scheduler", ("torch.optim",), "torch.optim.lr_scheduler.LRScheduler"),
    "hypergradient": Place("a hypergradient", ("mlorun.hypergradient.estimators",)),
    "hypergradient part": Place(
        "a part of a hypergradient", ("mlorun.hypergradient.solvers", "mlorun.hypergradient.crosses")
    ),
    "data": Place(
        "data",
        tuple(
            f"mlorun.data.{name}"
            for name in ("digits", "mnist", "long_tailed", "sinusoids", "regression", "digit_sources", "digit_tasks")
        ),
    ),
    "logger": Place("a logger", ("mlorun.loggers.console", "mlorun.loggers.jsonl", "mlorun.loggers.tensorboard")),
    "callback": Place("a callback", ("mlorun.callbacks.early_stopping",)),
    "problem": Place("a problem", (), "mlorun.core.program.problem.Problem"),
    "argument": Place("an argument of a problem", ("torch.nn", "torchvision.models"), _MODULE),
}
INNER = {"hypergradient": "hypergradient part"}  # what nodes inside of a node are; modules elsewhere


@dataclass(frozen=True)
class Allowed:
    """What may be named at one place.

    trusted   packages that a person trusts by name
    """

    place: Place
    trusted: tuple[str, ...] = ()

    @classmethod
    def at(cls, name: str, trusted: Sequence[str] = ()) -> Allowed:
        """At the place of this name."""
        return cls(PLACES[name], (*trusted, *_of_the_user()))

    @property
    def inside(self) -> Allowed:
        """What the nodes inside of such a node may name."""
        names = {place: name for name, place in PLACES.items()}
        return replace(self, place=PLACES[INNER.get(names[self.place], "argument")])

    def locate(self, target: Any, where: str) -> Callable[..., Any]:
        """The class or function that `target` names. Raises ConfigError for what is not there, or not allowed here."""
        path = f"{where}._target_"
        if isinstance(target, str) and any(part.startswith("_") for part in target.split(".")):
            raise ConfigError("a _target_ names nothing private", where=path, seen=target)
        packages = (*self.place.packages, *OWN, *self.trusted)
        if isinstance(target, str) and target.split(".")[0] in ROOTS and not _below(target, packages):
            # nothing is imported for it: an import runs code
            raise self._refused(target, path, target)
        found = locate(target, where, (*ROOTS, *self.trusted))
        parent, home = target.rpartition(".")[0], str(getattr(found, "__module__", ""))
        if not (inspect.isclass(found) or inspect.isfunction(found)) or not _is_module(parent):
            raise ConfigError(
                f"{target} is not a class or function of a module",
                where=path,
                seen=f"a {type(found).__name__}",
                fix="name a class, or a function, by the module that it stands in",
            )
        if _below(home, (*OWN, *self.trusted)):
            if self.place.base is not None and inspect.isclass(found) and self.place.title == "a problem":
                self._require_base(found, target, path)
            return found
        if _below(home, self.place.packages):
            if inspect.isclass(found):
                self._require_base(found, target, path)
                return found
            if self.place.base is None or _builds_a_model(found, home):
                return found
        raise self._refused(target, path, f"{found.__qualname__} of {home}")

    def _refused(self, target: str, path: str, seen: str) -> ConfigError:
        message = f"{target} may not stand here: this is the place of {self.place.title}"
        return ConfigError(message, where=path, seen=seen, fix=self._fix(target))

    def _require_base(self, found: type, target: str, path: str) -> None:
        bases = {f"{kind.__module__}.{kind.__qualname__}" for kind in found.__mro__}
        if self.place.base is not None and self.place.base not in bases:
            raise ConfigError(
                f"{target} is not {self.place.title}",
                where=path,
                seen=f"a class that does not derive from {self.place.base.rpartition('.')[2]}",
                fix=self._fix(found.__module__),
            )

    def _fix(self, home: str) -> str:
        packages = ", ".join((*self.place.packages, *OWN))
        root = home.split(".")[0]
        trust = "" if root in ROOTS else f"; or 'trusted_packages=[{root}]' on the command line, if you trust its code"
        return f"{self.place.title} is one of {packages}{trust}"


def require_trust(given: Sequence[str], overrides: Sequence[str]) -> None:
    """Raise ConfigError where packages are trusted that the command line did not name: no file may trust itself."""
    typed = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith("trusted_packages=")]
    named = {part.strip(" '\"") for text in typed for part in text.strip("[] ").split(",")}
    unasked = [package for package in given if package not in named]
    if unasked:
        raise ConfigError(
            f"a file trusts {', '.join(unasked)}, and only a person may",
            where="trusted_packages",
            seen=f"trusted_packages: [{', '.join(given)}] in a config",
            fix=f"'trusted_packages=[{','.join(given)}]' on the command line, or a line each in {_trust_file()}",
        )


def _trust_file() -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "mlorun" / "trusted_packages"


def _of_the_user() -> tuple[str, ...]:
    try:
        lines = _trust_file().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    return tuple(line.strip() for line in lines if line.strip().isidentifier())


def _below(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _is_module(path: str) -> bool:
    return path in sys.modules


def _builds_a_model(function: Callable[..., Any], home: str) -> bool:
    """Whether torchvision lists it among its models: the other functions there are tools."""
    if not _below(home, ("torchvision.models",)):
        return False
    from torchvision.models import list_models

    return function.__name__ in list_models()
