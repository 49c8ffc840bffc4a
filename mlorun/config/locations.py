"""Where configs lie: ours, and the user's in the working folder; groups, options, and their files. No torch."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent
PRIMARY_DIR = Path(__file__).with_name("primary")  # its config.yaml is what every composition starts from
OURS = "mlorun"  # `mlorun/NAME` is our option NAME, also where the user has one of that name


def configs_dir() -> Path:
    """Our configs: beside the package in a checkout, inside it in a wheel."""
    folders = (PACKAGE.parent, PACKAGE)
    for parent in folders:
        if (parent / "configs" / "experiment").is_dir():
            return parent / "configs"
    raise FileNotFoundError(f"mlorun is installed without its configs: none in {', '.join(map(str, folders))}")


def user_configs_dir() -> Path | None:
    """`./configs`, unless it is not there or is ours."""
    folder = Path.cwd() / "configs"
    return folder if folder.is_dir() and not folder.samefile(configs_dir()) else None


def config_folders() -> tuple[Path, ...]:
    """Where groups are looked for; the first that has an option wins."""
    user = user_configs_dir()
    return (configs_dir(),) if user is None else (user, configs_dir())


def groups() -> list[str]:
    """Names of the config groups."""
    return sorted({entry.name for folder in config_folders() for entry in folder.iterdir() if _is_group(entry)})


def options(group: str) -> dict[str, Path]:
    """The options of a group and their files."""
    files: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted((folder / group).glob("*.yaml")):
            if path.is_file():
                files.setdefault(path.stem, path)
    return dict(sorted(files.items()))


def _is_group(entry: Path) -> bool:
    return entry.is_dir() and entry.name.isidentifier() and any(entry.glob("*.yaml"))
