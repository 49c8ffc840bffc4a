"""Where Hydra looks for configs: the user's `./configs` first, then ours."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from mlorun.config.locations import configs_dir, user_configs_dir


class UserConfigsFirst(SearchPathPlugin):
    """Prepends `./configs` to whatever search path has our folder as its main one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it starts."""
        folder = user_configs_dir()
        ours = str(configs_dir())
        if folder is not None and any(entry.path == ours for entry in search_path.get_path()):
            search_path.prepend("user", f"file://{folder}", anchor=SearchPathQuery(provider="main"))


def register() -> None:
    """Tell Hydra; more than once does no harm."""
    Plugins.instance().register(UserConfigsFirst)
