"""mlorun: multilevel optimization experiments from the shell. Importing this is light: no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlorun.assemble import build
    from mlorun.config.compose import compose
    from mlorun.core.problem import Problem

__version__ = "0.1.0"
__all__ = ["Problem", "build", "compose"]

_root = Path(__file__).resolve().parent.parent
if (_root / "recipes").is_dir() and (_root / "configs").is_dir():
    # a checkout: recipes/ and configs/ lie beside the package; a wheel carries them inside it
    __path__.append(str(_root))

_HOMES = {"Problem": "mlorun.core.problem", "build": "mlorun.assemble", "compose": "mlorun.config.compose"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mlorun' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
