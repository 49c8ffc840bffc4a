"""The tests with the lowest versions that pyproject.toml promises: `python -m tests.lowest [FOLDER]`.

Makes a virtual environment in FOLDER (a temporary one, deleted at the end, where none is given), installs mlorun with
its `dev` extra and every dependency at its lower bound (`torch>=2.11` as `torch==2.11`), and runs pytest there. A
FOLDER that has an environment already is used again. It downloads torch, some GB: this is not part of
`python -m tests`. What follows FOLDER goes to pytest: `python -m tests.lowest /tmp/lowest -x tests/core`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BOUND = re.compile(r"(?P<name>[\w.-]+)\s*>=\s*(?P<version>[\w.]+)")


def lower_bounds(project: str) -> list[str]:
    """The dependencies of a pyproject.toml, each at its lower bound. Raises ValueError where one has none."""
    bounds = []
    for requirement in tomllib.loads(project)["project"]["dependencies"]:
        match = _BOUND.match(requirement)
        if match is None:
            raise ValueError(f"{requirement!r} in pyproject.toml has no lower bound")
        bounds.append(f"{match['name']}=={match['version']}")
    return bounds


def main(arguments: list[str]) -> int:
    """pytest's exit code."""
    if arguments:
        return run(Path(arguments[0]).resolve(), arguments[1:])
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), [])


def run(folder: Path, arguments: list[str]) -> int:
    python = str(folder / "bin" / "python")
    if not Path(python).exists():
        venv.create(folder, with_pip=True)
    bounds = lower_bounds((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    print("lowest versions:", *bounds, flush=True)
    install = [python, "-m", "pip", "install", "--quiet", "--editable", f"{ROOT}[dev]", *bounds]
    subprocess.run(install, check=True)
    return subprocess.run([python, "-m", "pytest", *arguments], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
