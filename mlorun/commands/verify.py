"""`mlorun verify`: every estimator against closed forms; `mlorun verify OVERRIDES...`: is this hypergradient right?"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlorun.errors import ConfigError

if TYPE_CHECKING:
    from mlorun.hypergradient.level import Hypergradient
    from mlorun.verify.point import Point

POINTS, STEPS = 3, 50


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where="mlorun verify", fix=self.format_usage().strip().removeprefix("usage: "))


def main(args: list[str]) -> int:
    """0 where every bound holds, 1 where one is broken."""
    parser = _Parser(prog="mlorun verify", add_help=False, allow_abbrev=False)
    parser.add_argument("--all", action="store_true", dest="everything")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--points", type=_count, default=POINTS)
    parser.add_argument("--steps", type=_count, default=STEPS)
    # overrides may begin with + or ~, and stand between flags
    options, overrides = parser.parse_known_args(args)
    if wrong := [text for text in overrides if text.startswith("--")]:
        parser.error(f"there is no flag {wrong[0]}")
    if options.plot is not None:
        from mlorun.verify.plot import require_matplotlib

        require_matplotlib()
        if not options.plot.absolute().parent.is_dir():
            raise ConfigError("there is no folder for the picture", where="--plot", seen=str(options.plot))
    if not overrides:
        if options.everything or options.plot is not None:
            parser.error("--all and --plot compare estimators on a program: name one, experiment=...")
        return _suite()
    return _program(overrides, options.points, options.steps, options.everything or bool(options.plot), options.plot)


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _suite() -> int:
    from mlorun.verify.suite import cells
    from mlorun.verify.table import screen, suite_table

    console = screen()
    console.print("relative error of every estimator against what it should give, float64 (float32: the worst)")
    found = []
    with console.status("") as status:
        for cell in cells():
            found.append(cell)
            status.update(f"{cell.estimator} on {cell.case}, {len(found)} numbers so far")
    console.print(suite_table(found))
    console.print("off exact: the largest distance from the exact hypergradient, by the estimator's design")
    broken = [cell for cell in found if not cell.holds]
    for cell in broken:
        console.print(f"[bold red]broken[/]: {cell.estimator} on {cell.case}, {cell.dtype}: {cell.error:.1e}")
    held = len(found) - len(broken)
    console.print(f"{held} of {len(found)} bounds hold, in {sum(cell.seconds for cell in found):.0f} s")
    return 1 if broken else 0


def _program(overrides: Sequence[str], count: int, steps: int, everything: bool, picture: Path | None) -> int:
    from rich.text import Text

    from mlorun.assemble import build
    from mlorun.config.check import check
    from mlorun.config.compose import composed, explained
    from mlorun.verify.plot import draw
    from mlorun.verify.program import compare, examine, points
    from mlorun.verify.table import comparison_parts, point_parts, screen

    config = composed(overrides)
    check(config)
    try:
        engine = build(config)
    except Exception as error:
        raise explained(error, overrides) from error.__cause__
    console = screen()
    reports = []
    with _without_remarks():
        for step, point, last in points(engine, count, steps):
            report = examine(step, point)
            reports.append(report)
            for part in point_parts(report):
                console.print(part, soft_wrap=isinstance(part, Text))
            if everything and last:
                rows = list(compare(point, _estimators(overrides, point)))
                for part in comparison_parts(rows, report.lower_gradient_seconds):
                    console.print(part, soft_wrap=isinstance(part, Text))
                if picture is not None:
                    draw(rows, f"{config.name}, step {step}, {point.upper}", picture)
                    console.print(f"wrote {picture}")
    console.print(
        "error: relative, against the estimator's own definition with exact derivatives in float64\n"
        "off exact, cosine: against the exact hypergradient of the loss of that batch; ~ if its solve left a residual",
        style="dim",
    )
    broken = sum(not edge.holds for report in reports for edge in report.edges)
    disturbed = sum(bool(report.disturbed) for report in reports)
    total = sum(len(report.edges) for report in reports)
    console.print(f"{total - broken} of {total} bounds hold, {disturbed} calls left a trace", style="bold")
    return 1 if broken or disturbed else 0


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Which stand-in is used, and what a central difference sees, is in the tables: the log need not say it again."""
    log = logging.getLogger("mlorun.hypergradient")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _estimators(overrides: Sequence[str], point: Point) -> Mapping[str, Callable[[], Mapping[str, Hypergradient]]]:
    """Every option of the hypergradient group, put on every lower problem of this point."""
    from omegaconf import OmegaConf

    from mlorun.assemble import make
    from mlorun.config.compose import composed
    from mlorun.config.locations import options

    def maker(option: str) -> Callable[[], Mapping[str, Hypergradient]]:
        def estimates() -> Mapping[str, Hypergradient]:
            chosen = composed([*overrides, *(f"{node}.hypergradient={option}" for node in point.nodes)])
            plain: Any = OmegaConf.to_container(chosen.problems)
            return {node: make(plain[node]["hypergradient"], f"problems.{node}.hypergradient") for node in point.nodes}

        return estimates

    return {option: maker(option) for option in options("hypergradient") if option != "none"}
