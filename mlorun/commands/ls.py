"""mlorun ls: the config groups; mlorun ls GROUP...: their options, what each is, and what it chooses."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlorun.config.locations import groups, options, user_configs_dir
from mlorun.config.option_files import chosen_options, description, option_summary
from mlorun.config.schema import PLACED_GROUPS
from mlorun.config.shorthand import PROBLEM
from mlorun.errors import ConfigError, did_you_mean


def main(args: list[str]) -> int:
    """Print a table of the groups, or one of each group named."""
    screen = Console(highlight=False)
    if not args:
        table = _table("group", "choose with", "options")
        for group in groups():
            of_a_problem = group in (*PLACED_GROUPS, PROBLEM)
            table.add_row(group, f"{'NAME.' if of_a_problem else ''}{group}=OPTION", ", ".join(options(group)))
        screen.print(table)
        screen.print("NAME is a problem of the experiment, e.g. classifier. mlorun ls GROUP describes the options")
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
            text = Text(description(path) + mine)
            details = option_summary(path)
            if chosen := chosen_options(path):
                details["chooses"] = ", ".join(chosen)
            for label, detail in details.items():
                text.append(f"\n{label:8s}", style="cyan").append(detail)
            table.add_row(name, text)
        screen.print(table)
    return 0


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in headers:
        table.add_column(header, style="bold" if header == headers[0] else None, overflow="fold")
    return table
