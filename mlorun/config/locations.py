"""Where configs and recipes lie: ours, and the user's in the working folder. No torch, no Hydra."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import mlorun

# groups whose options belong to one problem: module@problems.NAME.module
PLACED_GROUPS = ("module", "optimizer", "scheduler", "hypergradient")


def configs_dir() -> Path:
    """Our configs: beside the package in a checkout, inside it in a wheel."""
    for parent in map(Path, mlorun.__path__):
        if (parent / "configs" / "config.yaml").is_file():
            return parent / "configs"
    raise FileNotFoundError(f"mlorun is installed without its configs: none in {', '.join(mlorun.__path__)}")


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
    found: dict[str, Path] = {}
    for folder in config_folders():
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def about(path: Path) -> str:
    """What a YAML file says of itself in its `# about:` line; empty where it says nothing."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# about:"):
            return line.removeprefix("# about:").strip()
        if not line.startswith("#"):
            break
    return ""


def card(path: Path) -> dict[str, str]:
    """What the head of a hypergradient's YAML says: formula, cost, memory and when to use it; {} for other files.

    Its lines are `about`, the formula, `cost: ...; memory of ...`, `use it ...`, and a command.
    """
    head: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        if not line.startswith("#   "):
            break
        head.append(line.removeprefix("#").strip())
    cost = next((line for line in head if line.startswith("cost: ")), "")
    use = next((line for line in head if line.startswith("use it ")), "")
    if not cost or not use:
        return {}
    seconds, _, memory = cost.removeprefix("cost: ").partition("; memory of ")
    formula = " ".join(head[: head.index(cost)])
    return {"formula": formula, "cost": seconds, "memory": memory, "use it": use.removeprefix("use it ")}


def _is_group(entry: Path) -> bool:
    return entry.is_dir() and entry.name.isidentifier() and any(entry.glob("*.yaml"))


def make_recipes_importable() -> None:
    """Make `./recipes` the package `recipes`; and other packages of the working folder importable, last.

    `recipes` is bound to its folder: an editable install of mlorun has one of that name on sys.path.
    """
    here = Path.cwd()
    folder = here / "recipes"
    if folder.is_dir() and not _is_bound(folder):
        for name in [name for name in sys.modules if name == "recipes" or name.startswith("recipes.")]:
            del sys.modules[name]
        sys.modules["recipes"] = _package("recipes", folder)
    if str(here) not in sys.path:
        sys.path.append(str(here))


def _is_bound(folder: Path) -> bool:
    return "recipes" in sys.modules and list(sys.modules["recipes"].__path__) == [str(folder)]


def _package(name: str, folder: Path) -> ModuleType:
    package = ModuleType(name)
    package.__path__ = [str(folder)]
    package.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=True)
    return package
