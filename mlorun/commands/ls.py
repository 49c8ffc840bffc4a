"""mlorun ls: the config groups; mlorun ls GROUP...: their options, what each is, and what it chooses.

mlorun ls runs [ROOT [SWEEP_ROOT]]    the runs below runs/ and the sweeps below sweeps/, or in folders of your own: how
                                      each ended, and the command that goes on with it
"""

from __future__ import annotations

from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlorun.commands.runs import show_runs
from mlorun.config.locations import OURS, configs_dir, groups, options
from mlorun.config.option_files import chosen_options, description, option_summary
from mlorun.config.schema import PLACED_GROUPS
from mlorun.config.shorthand import PROBLEM
from mlorun.errors import ConfigError, did_you_mean
from mlorun.run.find import RUNS, SWEEPS


def main(args: list[str]) -> int:
    """Print a table of the groups, or one of each group named."""
    screen = Console(highlight=False)
    if args and args[0] == "runs":
        root, sweep_root = (*map(Path, args[1:3]), *(RUNS, SWEEPS)[len(args) - 1 :])
        show_runs(root, sweep_root, screen)
        return 0
    if not args:
        table = _table("group", "choose with", "options")
        for group in groups():
            of_a_problem = group in (*PLACED_GROUPS, PROBLEM)
            table.add_row(group, f"{'NAME.' if of_a_problem else ''}{group}=OPTION", ", ".join(options(group)))
        screen.print(table)
        screen.print("mlorun ls runs lists the runs and sweeps of this folder")
        screen.print("NAME is a problem of the experiment, e.g. classifier. mlorun ls GROUP describes the options")
        return 0
    for group in args:
        if group not in groups():
            raise ConfigError(
                f"there is no group {group!r}", where=f"mlorun ls {group}", fix=did_you_mean(group, groups())
            )
        table = _table(group, "what it is")
        for name, path in _files(group).items():
            text = Text(description(path) + ("" if configs_dir() in path.parents else " (yours)"))
            details = option_summary(path)
            if chosen := chosen_options(path):
                details["chooses"] = ", ".join(chosen)
            for label, detail in details.items():
                text.append(f"\n{label:8s}", style="cyan").append(detail)
            table.add_row(name, text)
        screen.print(table)
    return 0


def _files(group: str) -> dict[str, Path]:
    """The options of a group and their files; ours under `mlorun/NAME` where the user has one of that name."""
    files = options(group)
    ours = {path.stem: path for path in (configs_dir() / group).glob("*.yaml")}
    hidden = {f"{OURS}/{name}": path for name, path in ours.items() if files[name] != path}
    return {**files, **hidden}


def _table(*headers: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for header in headers:
        table.add_column(header, style="bold" if header == headers[0] else None, overflow="fold")
    return table
