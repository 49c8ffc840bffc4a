"""mlorun ls: the config groups; mlorun ls GROUP...: their options and what each says of itself."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlorun.config.locations import PLACED_GROUPS, about, card, groups, options, user_configs_dir
from mlorun.errors import ConfigError, did_you_mean


def main(args: list[str]) -> int:
    """Print a table of the groups, or one of each group named."""
    screen = Console(highlight=False)
    if not args:
        table = _table("group", "choose with", "options")
        for group in groups():
            how = f"PROBLEM.{group}=OPTION" if group in PLACED_GROUPS else f"{group}=OPTION"
            table.add_row(group, how, ", ".join(options(group)))
        screen.print(table)
        screen.print("mlorun ls GROUP says what each option is")
        return 0
    for group in args:
        if group not in groups():
            raise ConfigError(
                f"there is no group {group!r}", where=f"mlorun ls {group}", fix=did_you_mean(group, groups())
            )
        table = _table(group, "what it is")
        own = user_configs_dir()
        for name, path in options(group).items():
            mine = " (yours)" if own is not None and own in path.parents else ""
            said = Text(about(path) + mine)
            for label, text in card(path).items():
                said.append(f"\n{label:8s}", style="cyan").append(text)
            table.add_row(name, said)
        screen.print(table)
    return 0


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in headers:
        table.add_column(header, style="bold" if header == headers[0] else None, overflow="fold")
    return table
