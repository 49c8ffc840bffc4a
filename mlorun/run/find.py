"""The run or the sweep that a person means: a folder, `latest`, or a name. No torch."""

from __future__ import annotations

from pathlib import Path

from mlorun.errors import ConfigError, did_you_mean
from mlorun.run.folder import RunFolder

RUNS, SWEEPS = Path("runs"), Path("sweeps")
_RUN, _SWEEP = "run.json", "sweep.json"


def find_run(word: str) -> RunFolder:
    """The run: a folder, `latest`, or the name of runs, whose newest it is. Raises ConfigError."""
    return RunFolder(_find(word, {_RUN: RUNS}))


def find(word: str) -> Path:
    """The folder of a run or a sweep; of a name, or `latest`, the newest. Raises ConfigError."""
    return _find(word, {_RUN: RUNS, _SWEEP: SWEEPS})


def is_sweep(folder: Path) -> bool:
    """Whether a folder that `find` gave is a sweep's."""
    return (folder / _SWEEP).is_file() and not (folder / _RUN).is_file()


def folders(root: Path, record: str) -> list[Path]:
    """All folders root/NAME/ID with such a record in them, the newest last; `latest` is none of them."""
    paths = (path.parent for path in root.glob(f"*/*/{record}"))
    return sorted((path for path in paths if not path.is_symlink()), key=lambda path: path.name)


def run_folders(root: Path = RUNS) -> list[Path]:
    """The folders of all runs, the newest last."""
    return folders(root, _RUN)


def sweep_folders(root: Path = SWEEPS) -> list[Path]:
    """The folders of all sweeps, the newest last."""
    return folders(root, _SWEEP)


def _find(word: str, places: dict[str, Path]) -> Path:
    given = Path(word)
    if any((given / record).is_file() for record in places):
        return given.absolute()
    candidates = [path for record, root in places.items() for path in folders(root, record)]
    wanted = [path for path in candidates if word in ("latest", path.parent.name)]
    if wanted:
        return max(wanted, key=lambda path: path.name).absolute()
    names = sorted({path.parent.name for path in candidates})
    kinds = "run" if len(places) == 1 else "run or sweep"
    raise ConfigError(
        f"there is no {kinds} {word!r}",
        where=word,
        seen=f"a folder without {' or '.join(places)}" if given.is_dir() else "no folder, and no name of a run",
        fix=f"a folder, latest, or a name: {did_you_mean(word, names)}; mlorun ls runs lists them",
    )
