"""The run folder: its place, its name, and the files that say what the run was and how it ended. No torch."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

from mlorun.errors import ConfigError, ResourceError
from mlorun.run.atomic import point, remove_drafts, sync, write_bytes, write_json
from mlorun.run.events import Result
from mlorun.run.provenance import git_state
from mlorun.run.record import read_result, read_run
from mlorun.run.secrets import require_no_secret

LONGEST_NAME = 100  # bytes

log = logging.getLogger("mlorun.run")


@final
@dataclass(frozen=True)
class RunFolder:
    """The files of one run, below `path`. `create` and `at` make a folder; the constructor opens one."""

    path: Path

    @classmethod
    def create(cls, root: Path | str, name: str) -> RunFolder:
        """A new folder root/name/run_id, with root/name/latest pointing to it.

        run_id is the UTC time to the millisecond, so it sorts by time; a taken one is waited out.
        """
        require_name(name)
        require_no_secret(root, "run.root")
        home = Path(root).absolute() / name
        _make(home, exist_ok=True)
        while True:
            path = home / _run_id()
            try:
                _make(path, exist_ok=False)
                break
            except FileExistsError:
                time.sleep(0.001)
        _point(home / "latest", path.name)
        return cls(path)

    @classmethod
    def at(cls, path: Path | str) -> RunFolder:
        """A new run in this very folder, which is made where it is missing and must not hold a run yet."""
        folder = cls(Path(path).absolute())  # a recipe may change the working folder
        _make(folder.path, exist_ok=True)
        if folder.run.exists() or folder.result.exists():
            raise ConfigError(
                "the folder holds a run already",
                where=str(path),
                seen=f"run.json with status {folder.facts().get('status')}" if folder.run.exists() else "result.json",
                fix="name another folder, or remove this one",
            )
        return folder

    @property
    def config(self) -> Path:
        """The composed and resolved config: enough to run it again."""
        return self.path / "config.yaml"

    @property
    def run(self) -> Path:
        """Status, command, versions, attempts, timing."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """One line per event, without wall-clock."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the console showed, and every traceback in full."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def artifacts(self) -> Path:
        """Pictures, tables, arrays and texts that problems save."""
        return self.path / "artifacts"

    @property
    def result(self) -> Path:
        """Written last: where it exists, the run is over."""
        return self.path / "result.json"

    @property
    def final_result(self) -> dict[str, Any] | None:
        """What result.json says of a run that is complete; None of any other."""
        return read_result(self.result) if self.facts()["status"] == "finished" else None

    @property
    def is_config_edited(self) -> bool:
        """Whether somebody else than a run has written config.yaml."""
        configs = self.facts().get("configs", [])
        return bool(configs) and _sha256(self.config.read_bytes()) not in configs

    @property
    def expects_checkpoints(self) -> bool:
        """Whether one was saved once: without any, the run has lost them."""
        return self.run.exists() and bool(self.facts().get("saves"))

    def expect_checkpoints(self) -> None:
        """Record that there is one."""
        if not self.expects_checkpoints:
            self.update(saves=True)

    def remove_drafts(self) -> None:
        """Remove what killed writers left."""
        for folder in (self.path, self.checkpoints):
            if folder.is_dir():
                remove_drafts(folder)

    def cut_metrics(self, length: int) -> None:
        """Take off what was written after the state that a run goes on from."""
        if self.metrics.exists():
            os.truncate(self.metrics, length)
            sync(self.metrics)

    def begin(
        self,
        *,
        name: str,
        config: str,
        argv: Sequence[str],
        overrides: Sequence[str],
        origin: Mapping[str, Any],
        precision: str,
        step: int = 0,
        drift: Sequence[str] = (),
    ) -> None:
        """Write config.yaml and run.json; a run.json that exists gets another attempt, from `step`.

        origin   what the bits depend on beside the config: `mlorun.origin`
        drift    what of that has changed since the attempt before
        """
        earlier = self.facts() if self.run.exists() else {}
        configs = list(dict.fromkeys([*earlier.get("configs", []), _sha256(config.encode())]))
        started = _now()
        attempt = {
            "started": started,
            "ended": None,
            "status": "running",
            "from_step": step,
            "to_step": None,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "drift": list(drift),
        }
        self.checkpoints.mkdir(exist_ok=True)
        if earlier:
            self.update(configs=configs)  # first: who is killed before the next line has not edited the file
        write_bytes(self.config, config.encode())
        write_json(
            self.run,
            {
                "name": name,
                "run_id": self.path.name,
                "status": "running",
                "argv": list(argv),
                "overrides": list(overrides),
                "cwd": os.getcwd(),
                "precision": precision,
                "origin": dict(origin),
                "bitwise": not drift and earlier.get("bitwise", True),
                "configs": configs,
                "saves": earlier.get("saves", False),
                "platform": platform.platform(),
                "git": git_state(Path.cwd()),
                "started": earlier.get("started", started),
                "ended": None,
                "wall_seconds": None,
                "attempts": [*earlier.get("attempts", []), attempt],
            },
        )
        self.result.unlink(missing_ok=True)

    def finish(self, result: Result) -> None:
        """Close the attempt in run.json; then, last of all, write result.json."""
        facts = self.facts()
        ended = _now()
        *before, attempt = facts["attempts"]
        closed = {**attempt, "ended": ended, "status": result.status, "to_step": result.steps}
        if result.error is not None:
            closed["error"] = f"{type(result.error).__name__}: {result.error}"
        self.update(
            status=result.status,
            ended=ended,
            steps=result.steps,
            wall_seconds=result.wall_seconds,
            attempts=[*before, closed],
        )
        write_json(self.result, result.as_json())

    def facts(self) -> dict[str, Any]:
        """run.json as it stands. Raises ConfigError for one that is damaged."""
        return read_run(self.run)

    def update(self, **fields: Any) -> None:
        """Change these fields of run.json, and keep the others."""
        write_json(self.run, {**self.facts(), **fields})


def require_home(root: Path | str, name: str) -> None:
    """Raise ConfigError where no run folder root/name/... can be made. A folder is made beside it, and removed."""
    require_name(name)
    require_no_secret(root, "run.root")
    home = Path(root).absolute() / name
    above = next(path for path in (home, *home.parents) if path.exists())
    try:
        with TemporaryDirectory(prefix=".mlorun-", dir=above):
            pass
    except OSError as error:
        raise _no_folder(home, error) from error


def require_name(name: str) -> None:
    """Raise ConfigError for a name of runs that cannot be a folder's."""
    require_no_secret(name, "name")
    if len(name.encode(errors="replace")) > LONGEST_NAME:
        raise ConfigError(
            "name becomes a folder, and is too long",
            where="name",
            seen=f"{len(name)} characters: {name[:40]}...",
            fix=f"{LONGEST_NAME} bytes at most",
        )
    if not name or name.startswith(".") or not name.isprintable() or any(mark in name for mark in '/\\:*?"<>|'):
        near = re.sub(r"[^\w.-]+", "-", name).strip(".-")
        raise ConfigError(
            "name becomes a folder, and no folder can be called so",
            where="name",
            seen=f"name={name}",
            fix=f"name={near or 'NAME'}: letters, digits, '-', '_' and '.', not starting with '.'",
        )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _run_id() -> str:
    now = datetime.now(UTC)
    return f"{now:%Y%m%d-%H%M%S}-{now.microsecond // 1000:03d}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _make(path: Path, *, exist_ok: bool) -> None:
    """mkdir, with errors that say what to do; FileExistsError only where `path` is there and must be new."""
    try:
        path.mkdir(parents=exist_ok, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError("no space is left for the run folder", where=str(path)) from error
        raise _no_folder(path, error) from error


def _no_folder(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        "the run folder cannot be made",
        where=str(path),
        seen=error.strerror or str(error),
        fix="run.root=FOLDER names a place that can be written to",
    )


def _point(pointer: Path, run_id: str) -> None:
    """Make `pointer` lead to its sibling `run_id`. A run does without it, so only warn."""
    try:
        point(pointer, run_id)
    except OSError as error:
        log.warning("%s still points elsewhere: %s", pointer, error.strerror)
