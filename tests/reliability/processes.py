"""Short runs in processes of their own, that may be killed: forks of one that has imported everything."""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mlorun.errors import MlorunError

ALWAYS = ("threads=1", "logger=jsonl", "checkpoint.every=3", "checkpoint.seconds=0", "engine.valid_every=5")


def forked(work: Callable[[], int]) -> int:
    """The pid of a process that does this, and ends with its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = work()
    except KeyboardInterrupt:
        code = 130
    except MlorunError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = error.exit_code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid: int) -> int:
    """Of a process, once it has ended; minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def start(config: Any, folder: Path) -> int:
    """Train in `folder`; the exit code."""
    import mlorun

    return mlorun.train(config, (), folder).exit_code


def resume(folder: Path) -> int:
    """Go on in `folder`; the exit code."""
    from mlorun.commands.resume import main

    return main([str(folder), "trusted_packages=[tests]"])


def attempt(config: Any, folder: Path) -> int:
    """Go on where there is a run, or else start; the exit code."""
    if not (folder / "run.json").exists():
        # it died before it was one: what is there holds nothing
        for path in folder.glob("*") if folder.is_dir() else ():
            path.rmdir() if path.is_dir() else path.unlink()
        return start(config, folder)
    return resume(folder)


def outcome(folder: Path) -> tuple[str, bytes]:
    """params_sha256, and metrics.jsonl."""
    result = json.loads((folder / "result.json").read_text())
    return result["params_sha256"], (folder / "metrics.jsonl").read_bytes()


def programs(only: Sequence[str] | None = None) -> dict[str, Any]:
    """Configs by name."""
    import mlorun
    from tests.core.test_state import PROGRAMS

    chosen = {name: one for name, one in PROGRAMS.items() if only is None or name in only}
    return {name: mlorun.compose([*overrides, *ALWAYS]) for name, overrides in chosen.items()}


def prepare() -> None:
    """Import and warm up everything once, before any fork."""
    import mlorun.restart  # noqa: F401

    with TemporaryDirectory() as folder:
        assert start(programs(["dropout"])["dropout"], Path(folder)) == 0
    gc.freeze()  # or the first collection in a fork copies every page
