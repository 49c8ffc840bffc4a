"""Where Hydra looks for configs: our primary config, then the user's `./configs`, then ours."""

from __future__ import annotations

from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from mlorun.config import sources
from mlorun.config.locations import PRIMARY_DIR, configs_dir, user_configs_dir
from mlorun.config.sources import OurConfigs, UserConfigs


class ConfigFolders(SearchPathPlugin):
    """Adds the folders of groups to a search path that starts with the folder of our primary config."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Called by Hydra whenever it starts."""
        if not any((entry.path or "").removeprefix("file://") == str(PRIMARY_DIR) for entry in search_path.get_path()):
            return  # Hydra is used by another program
        main = SearchPathQuery(provider="main")
        search_path.append("mlorun", f"{OurConfigs.scheme()}://{configs_dir()}", anchor=main)
        if (user := user_configs_dir()) is not None:
            search_path.append("user", f"{UserConfigs.scheme()}://{user}", anchor=main)


def register() -> None:
    """Tell Hydra; more than once does no harm."""
    sources.register()
    Plugins.instance().register(ConfigFolders)
