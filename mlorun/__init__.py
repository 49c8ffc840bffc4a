"""mlorun: multilevel optimization experiments from the shell. Importing this is light: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlorun.version import __version__

if TYPE_CHECKING:
    from mlorun.assemble import build
    from mlorun.config.compose import compose
    from mlorun.core.callback import Callback
    from mlorun.core.engine import Engine
    from mlorun.core.program.problem import Metric, Problem
    from mlorun.errors import (
        ConfigError,
        ConfigErrors,
        DataError,
        DeviceError,
        GraphError,
        MlorunError,
        NonFiniteError,
        ResourceError,
        RunError,
    )
    from mlorun.hypergradient.draws import draw
    from mlorun.saved import load
    from mlorun.training import train

__all__ = [
    "Problem", "Metric", "Engine", "Callback", "build", "compose", "train", "load", "draw",
    "MlorunError", "ConfigError", "ConfigErrors", "GraphError", "DataError", "DeviceError",
    "RunError", "NonFiniteError", "ResourceError",
    "__version__",
]  # fmt: skip

_root = Path(__file__).resolve().parent.parent
if (_root / "recipes").is_dir() and (_root / "configs").is_dir():
    # a checkout: recipes/ and configs/ lie beside the package; a wheel carries them inside it
    __path__.append(str(_root))

# where each public name lives; imported at its first use
_HOMES = {
    "Problem": "mlorun.core.program.problem",
    "Metric": "mlorun.core.program.problem",
    "Engine": "mlorun.core.engine",
    "Callback": "mlorun.core.callback",
    "build": "mlorun.assemble",
    "compose": "mlorun.config.compose",
    "train": "mlorun.training",
    "load": "mlorun.saved",
    "draw": "mlorun.hypergradient.draws",
    **{name: "mlorun.errors" for name in __all__ if name.endswith(("Error", "Errors"))},
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mlorun' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
