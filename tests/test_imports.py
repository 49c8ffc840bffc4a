"""Imports point down, and help needs neither torch nor Hydra."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mlorun"
# a part may import its own floor and those below it: the picture in docs/architecture.md; the longest name that a
# module begins with says which part it belongs to
FLOORS = (
    ("cli", "__main__"),
    ("commands",),
    ("sweeps",),
    ("training",),
    ("assemble", "verify", "origin", "restart", "attempt", "saved", "weights"),
    ("callbacks",),
    ("core",),
    ("core.replay",),
    ("core.program",),
    ("loggers", "data"),
    ("run", "config", "report"),
    ("hypergradient.estimators", "hypergradient.sweep"),
    ("hypergradient.node",),
    ("hypergradient.solvers", "hypergradient.crosses"),
    ("hypergradient",),
    ("errors", "version"),
)
HEIGHT = {name: len(FLOORS) - index for index, floor in enumerate(FLOORS) for name in floor}


def part_of(module: str) -> str:
    """The part that a module of mlorun belongs to: "core.program.graph" to "core.program"."""
    names = module.split(".")
    prefixes = [".".join(names[:count]) for count in range(len(names), 0, -1)]
    return next(prefix for prefix in prefixes if prefix in HEIGHT)


def imports(path: Path) -> set[str]:
    """Modules of mlorun that a file imports when it runs, wherever in the file; "" is the package itself."""
    modules: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mlorun":
            base = node.module.removeprefix("mlorun").lstrip(".")
            folder = PACKAGE.joinpath(*base.split(".")) if base else PACKAGE
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").exists() or (folder / alias.name / "__init__.py").exists()
                modules.add(f"{base}.{alias.name}".lstrip(".") if is_module else base)
        elif isinstance(node, ast.Import):
            modules |= {
                a.name.removeprefix("mlorun").lstrip(".") for a in node.names if a.name.split(".")[0] == "mlorun"
            }
    return modules


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = part_of(name_of(path))
    modules = imports(path)
    assert "" not in modules, f"{own} imports the package itself, which is above everything"
    above = {module for module in modules if HEIGHT[part_of(module)] > HEIGHT[own]}
    assert not above, f"{own} imports {', '.join(above)}, which is above it"


def test_every_part_has_a_floor() -> None:
    assert all(part_of(name_of(path)) for path in FILES)
    files = [PACKAGE / name.replace(".", "/") for name in HEIGHT]
    assert all(file.is_dir() or file.with_suffix(".py").exists() for file in files)


def test_only_one_module_calls_autograd() -> None:
    """Counters, tracers and reductions have one place to stand. What judges shares nothing with what it
    judges."""
    allowed = {"hypergradient.derivatives", "hypergradient.forward_ad", "verify.oracles", "verify.autograd"}
    calls = {
        name_of(path)
        for path in FILES
        for word in ("autograd.grad", "make_dual", ".backward(", "autograd.functional", "from torch.func")
        if word in path.read_text(encoding="utf-8")
    }
    assert calls == allowed


def test_no_part_of_mlorun_but_recipes_imports_recipes() -> None:
    assert not [path for path in FILES if any(name.split(".")[0] == "recipes" for name in imports(path))]


def test_subpackages_start_empty() -> None:
    assert not [path for path in PACKAGE.rglob("*/__init__.py") if path.read_text().strip()]


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
