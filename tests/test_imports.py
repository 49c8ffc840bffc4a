"""Imports point down, and help needs neither torch nor Hydra."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mlorun"
# a package may import its own layer and those below it; see the picture in the design
LAYERS = (
    ("cli", "__main__"),
    ("commands",),
    ("assemble",),
    ("verify",),
    ("loggers", "core"),
    ("run", "data", "config", "report"),
    ("hypergradient",),
    ("errors",),
)
HEIGHT = {name: len(LAYERS) - index for index, layer in enumerate(LAYERS) for name in layer}


def imports(path: Path) -> set[str]:
    """Parts of mlorun that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mlorun."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("mlorun.")}
    return found


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    above = {name for name in imports(path) if HEIGHT[name] > HEIGHT[part]}
    assert not above, f"{part} imports {', '.join(above)}, which is above it"


def test_no_part_of_mlorun_but_recipes_imports_recipes() -> None:
    assert not [path for path in FILES if "recipes" in imports(path)]


def test_subpackages_start_empty() -> None:
    assert not [path for path in PACKAGE.glob("*/__init__.py") if path.read_text().strip()]


@pytest.mark.parametrize(
    "code", ["import mlorun", "from mlorun.cli import main; main([])", "from mlorun.cli import main; main(['-h'])"]
)
def test_help_imports_neither_torch_nor_hydra(code: str) -> None:
    check = "import sys; assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, capture_output=True, cwd=PACKAGE.parent)


def test_a_graph_is_drawn_without_torch() -> None:
    code = "from mlorun.cli import main; assert main(['graph', 'experiment=mwn_digits']) == 0"
    check = "import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{code}\n{check}"], check=True, capture_output=True, cwd=PACKAGE.parent)
