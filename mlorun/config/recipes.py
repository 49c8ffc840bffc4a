"""`./recipes` as the package `recipes`, whatever else of that name lies on sys.path. No torch, no Hydra."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = "recipes"


def make_recipes_importable() -> None:
    """Make `./recipes` the package `recipes`; and other packages of the working folder importable, last.

    Nothing is imported here: the first `import recipes` runs `./recipes/__init__.py`, if there is one.
    """
    if not any(isinstance(finder, _WorkingFolder) for finder in sys.meta_path):
        # before the usual finders: an editable install of mlorun puts a folder of that name on sys.path
        sys.meta_path.insert(0, _WorkingFolder())
    here = Path.cwd()
    folder = here / PACKAGE
    if folder.is_dir() and PACKAGE in sys.modules and not _is_at(sys.modules[PACKAGE], folder):
        # imported from another working folder
        for name in [name for name in sys.modules if name == PACKAGE or name.startswith(f"{PACKAGE}.")]:
            del sys.modules[name]
    if str(here) not in sys.path:
        sys.path.append(str(here))


def _is_at(package: ModuleType, folder: Path) -> bool:
    return list(getattr(package, "__path__", ())) == [str(folder)]


class _WorkingFolder(MetaPathFinder):
    """Finds the package `recipes` in the working folder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != PACKAGE or not (folder := Path.cwd() / PACKAGE).is_dir():
            return None
        init = folder / "__init__.py"
        if init.is_file():
            return spec_from_file_location(PACKAGE, init, submodule_search_locations=[str(folder)])
        spec = ModuleSpec(PACKAGE, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        return spec
