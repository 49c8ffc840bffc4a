"""All checks, one command: `python -m tests` runs ruff, mypy and, last, pytest, which gets its arguments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = (
    ("ruff", "check", "."),
    ("ruff", "format", "--check", "."),
    ("mypy",),
)


def main(arguments: list[str]) -> int:
    """The number of checks that failed; every one runs, whatever the others said."""
    failed = []
    for module, *options in (*CHECKS, ("pytest", *arguments)):
        print(f"$ {module} {' '.join(options)}".rstrip(), flush=True)
        done = subprocess.run([sys.executable, "-m", module, *options], cwd=ROOT, check=False)
        if done.returncode:
            failed.append(f"{module} {' '.join(options)}".strip())
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
