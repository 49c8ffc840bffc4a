"""Our config files and the user's, as Hydra reads them. No torch.

A file of ours that names an option in its defaults list means our option, also where `./configs` has one of that name;
everywhere else the user's comes first. `mlorun/NAME` is ours wherever it stands: `classifier.module=mlorun/mlp`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf

from mlorun.config.file_checks import require_bounded, require_defaults_list, require_no_hydra, require_no_mark
from mlorun.config.locations import OURS, configs_dir, options, user_configs_dir
from mlorun.config.option_files import defaults_list
from mlorun.errors import ConfigError

Entries = list[Any]


class OurConfigs(FileConfigSource):
    """configs/ of mlorun."""

    @staticmethod
    def scheme() -> str:
        return "mlorun-configs"

    def is_config(self, config_path: str) -> bool:
        return super().is_config(_without_prefix(config_path))

    def load_config(self, config_path: str) -> ConfigResult:
        path = _without_prefix(config_path)
        group = path.rpartition("/")[0]
        return _with_defaults(super().load_config(path), lambda entries: [_ours(entry, group) for entry in entries])


class UserConfigs(FileConfigSource):
    """./configs of the working folder."""

    @staticmethod
    def scheme() -> str:
        return "mlorun-user-configs"

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, name = config_path.removesuffix(".yaml").rpartition("/")

        def change(entries: Entries) -> Entries:
            return overrides_last([_of_same_name(entry, group, name) for entry in entries])

        file = Path(self.path) / f"{config_path.removesuffix('.yaml')}.yaml"
        if file.is_file():
            require_bounded(file)
            require_no_mark(file)
        where = f"configs/{config_path.removesuffix('.yaml')}.yaml"
        try:
            result = super().load_config(config_path)
        except UnicodeDecodeError as error:
            raise ConfigError("a config is not text", where=where, seen=str(error), fix="save it as UTF-8") from error
        except (ValueError, LookupError, TypeError) as error:  # its first line; or `!!int ''`, 2001-13-45
            fix = (
                "the first line of an experiment is: # @package _global_" if "@package" in str(error) else "correct it"
            )
            raise ConfigError("a config cannot be read", where=where, seen=str(error), fix=fix) from error
        plain = OmegaConf.to_container(result.config, resolve=False)
        require_defaults_list(where, plain)
        require_no_hydra(config_path.removesuffix(".yaml"), result.header.get("package"), plain)
        return _with_defaults(result, change)


def register() -> None:
    """Tell Hydra; more than once does no harm."""
    for source in (OurConfigs, UserConfigs):
        Plugins.instance().register(source)


def overrides_last(entries: Entries) -> Entries:
    """Entries that choose again what a problem option of the same list chooses, as `override` entries at the end.

    `/module@problems.a.module: lenet` beside `/problem@problems.a: classifier`, which chooses a module itself.
    """
    again = {package for entry in entries for package in _packages_of_problem(entry)}
    plain = [entry for entry in entries if _package(entry) not in again]
    moved = [{f"override {key}": option} for entry in entries if entry not in plain for key, option in entry.items()]
    return [*plain, *moved]


def _packages_of_problem(entry: Any) -> list[str]:
    """`problems.a.module` and so on for `/problem@problems.a: OPTION`: where the option chooses from groups itself."""
    package = _package(entry)
    if package is None or not next(iter(entry)).lstrip("/").startswith("problem@"):
        return []
    option = str(next(iter(entry.values())))
    file = configs_dir() / "problem" / f"{option.removeprefix(f'{OURS}/')}.yaml"
    if not option.startswith(f"{OURS}/"):
        file = options("problem").get(option, file)
    chosen = [_package(below) for below in defaults_list(file)] if file.is_file() else []
    return [f"{package}.{name}" for name in chosen if name is not None]


def _package(entry: Any) -> str | None:
    """The package of an entry `GROUP@PACKAGE: OPTION`; None for entries of other kinds."""
    if not isinstance(entry, dict) or len(entry) != 1:
        return None
    key = str(next(iter(entry)))
    return None if " " in key else key.partition("@")[2] or None


def _ours(entry: Any, group: str) -> Any:
    """An entry of a file of ours in `group`, so that it does not mean the user's option."""
    if isinstance(entry, str) and _is_shadowed(group, entry):
        return f"{OURS}/{entry}@_here_"
    if isinstance(entry, dict):
        return {key: _our_option(str(key), option) for key, option in entry.items()}
    return entry


def _of_same_name(entry: Any, group: str, name: str) -> Any:
    """An entry of the user's file `name` in `group`: a file that starts from its own name starts from ours."""
    if isinstance(entry, str) and entry.startswith(f"{OURS}/") and "@" not in entry:
        return f"{entry}@_here_"
    if entry != name:
        return entry
    if not (configs_dir() / group / f"{name}.yaml").is_file():
        raise ConfigError("a defaults list names its own file", where=f"configs/{group}/{name}.yaml", fix="drop it")
    return f"{OURS}/{name}@_here_"


def _our_option(key: str, option: Any) -> Any:
    group = key.split(" ")[-1].partition("@")[0].lstrip("/")
    return f"{OURS}/{option}" if isinstance(option, str) and _is_shadowed(group, option) else option


def _is_shadowed(group: str, option: str) -> bool:
    user = user_configs_dir()
    return user is not None and (user / group / f"{option}.yaml").is_file()


def _without_prefix(config_path: str) -> str:
    """module/mlorun/mlp as module/mlp."""
    path = Path(config_path)
    return (path.parent.parent / path.name).as_posix() if path.parent.name == OURS else config_path


def _with_defaults(result: ConfigResult, change: Callable[[Entries], Entries]) -> ConfigResult:
    """A file as it was read, with another defaults list."""
    config = result.config
    if isinstance(config, DictConfig) and OmegaConf.is_list(config.get("defaults")):
        entries = OmegaConf.to_container(config.defaults, resolve=False)
        assert isinstance(entries, list)
        config.defaults = change(entries)
    return result
