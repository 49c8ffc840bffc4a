"""Is this hypergradient right?

mlorun verify                         every estimator against closed forms, about half a minute
mlorun verify [FLAGS] OVERRIDES...    the hypergradient that a program is configured with, on its own losses and
                                      batches at a few points of a short run: is it computed as defined, against exact
                                      derivatives in float64; does computing it change parameters, buffers, optimizer
                                      state or random numbers; and, the verdict, how far it is from the derivative of
                                      the solved program, and why

  --points N           how many points for each upper problem (3; with --resolve, 2)
  --steps N            the global steps that they are spread over, from the first possible one (50)
  --resolve            take that derivative by its definition: solve the lower problems again beside each point
  --resolve-budget N   the same, with at most N gradients a solve (2000)
  --all                compare every estimator on the last point with the implicit function theorem's hypergradient:
                       distance, time, memory
  --plot FILE          the same, and a picture of distance against time (.png, .pdf, .svg, ...), one for each upper
                       problem; needs matplotlib

The last line and the exit code are the verdict, the worst of all points:
  OK               the derivative of the solved program; or, where upper parameters act on the updates alone, of the
                   inner loop as it runs
  DIRECTION ONLY   its direction (cosine 0.9 and above), at another length
  NOT KNOWN        the lower problem is not solved at the point, so that the implicit function theorem is no reference
                   there: --resolve
  FAR OFF, WRONG WAY, NOT AS DEFINED (a bound is broken), NOT CLEAN (a call changed something)
Exit codes: 0 OK or DIRECTION ONLY, 1 anything else, 2 the command or the config is wrong, 4 a loss or a hypergradient
is not finite.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mlorun.errors import ConfigError

if TYPE_CHECKING:
    from mlorun.hypergradient.estimator import Hypergradient
    from mlorun.verify.point import VerificationPoint

POINTS, RESOLVED_POINTS, STEPS, RESOLVE_BUDGET = 3, 2, 50, 2000


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where="mlorun verify", fix=self.format_usage().strip().removeprefix("usage: "))


def main(args: list[str]) -> int:
    """0 where every bound holds and the verdict is good, 1 where not."""
    parser = _Parser(prog="mlorun verify", add_help=False, allow_abbrev=False)
    parser.add_argument("--all", action="store_true", dest="everything")
    parser.add_argument("--plot", type=Path, metavar="FILE")
    parser.add_argument("--points", type=_count, metavar="N")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--resolve-budget", type=_count, metavar="N")
    parser.add_argument("--steps", type=_count, metavar="N", default=STEPS)
    # overrides may begin with + or ~, and stand between flags
    options, overrides = parser.parse_known_args(args)
    if {"-m", "--multirun"} & {*overrides}:
        parser.error("one program at a time: verify makes no sweep")
    if wrong := [text for text in overrides if text.startswith("-")]:
        parser.error(f"there is no flag {wrong[0]}")
    if options.plot is not None:
        from mlorun.verify.plot import require_picture

        require_picture(options.plot)
    budget = options.resolve_budget
    if options.resolve and budget is None:
        budget = RESOLVE_BUDGET
    if not overrides:
        if budget is not None:
            parser.error("--resolve solves the lower problems of a program again: name one, experiment=...")
        if options.everything or options.plot is not None:
            parser.error("--all and --plot compare estimators on a program: name one, experiment=...")
        return _suite()
    everything = options.everything or bool(options.plot)
    points = options.points or (POINTS if budget is None else RESOLVED_POINTS)
    return _program(overrides, points, options.steps, everything, options.plot, budget)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number above 0")
    return int(text)


def _suite() -> int:
    from mlorun.verify.suite import cells
    from mlorun.verify.table import say, screen, show_suite

    console = screen()
    say(console, "relative error of every estimator against what it should give, float64 (float32: the worst)")
    found = []
    with console.status("") as status:
        for cell in cells():
            found.append(cell)
            status.update(f"{cell.estimator} on {cell.case}, {str(cell.dtype).removeprefix('torch.')}")
    show_suite(console, found)
    broken = [cell for cell in found if not cell.holds]
    for cell in broken:
        say(console, f"broken: {cell.estimator} on {cell.case}, {cell.dtype}: {cell.error:.1e}", style="bold red")
    held = len(found) - len(broken)
    say(console, f"{held} of {len(found)} bounds hold, in {sum(cell.seconds for cell in found):.0f} s")
    return 1 if broken else 0


def _program(
    overrides: Sequence[str], count: int, steps: int, everything: bool, picture: Path | None, budget: int | None
) -> int:
    from mlorun.assemble import build
    from mlorun.config.check import check
    from mlorun.config.compose import composed, explained
    from mlorun.verify.comparison import compare
    from mlorun.verify.plot import draw
    from mlorun.verify.program import PointReport, examine, points
    from mlorun.verify.table import LEGEND, say, screen, show_comparison, show_last_line, show_point, show_verdict

    config = composed(overrides)
    check(config)
    try:
        engine = build(config, record_all=True)
    except Exception as error:
        raise explained(error, overrides) from error.__cause__
    console = screen()
    alone = sum(bool(engine.graph.nodes_on_paths(name)) for name in engine.graph.names) == 1
    reports = []
    before: dict[str, PointReport] = {}
    with _without_remarks():
        for step, point, last in points(engine, count, steps):
            report = examine(step, point, budget)
            reports.append(report)
            show_point(console, report, before.get(point.upper))
            before[point.upper] = report
            if everything and last:
                rows = []
                with console.status("comparing all estimators") as status:
                    for row in compare(point, _estimators(overrides, point)):
                        rows.append(row)
                        status.update(f"comparing all estimators: {len(rows)}, {row.name}")
                show_comparison(console, rows, report.lower_gradient_seconds)
                if picture is not None:
                    path = picture if alone else picture.with_stem(f"{picture.stem}-{point.upper}")
                    drawn = draw(rows, f"{config.name}, step {step}, {point.upper}", path)
                    say(console, f"wrote {path}" if drawn else "no picture: the optimum depends on nobody above")
    for line in LEGEND:
        say(console, line, style="dim")
    for upper in dict.fromkeys(report.upper for report in reports):
        mine = [report for report in reports if report.upper == upper]
        show_verdict(console, max(mine, key=lambda report: report.verdict.badness), len(mine))
    return show_last_line(console, reports)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Which stand-in is used, and what a central difference sees, is in the tables: the log need not say it again."""
    log = logging.getLogger("mlorun.hypergradient")

    def other(record: logging.LogRecord) -> bool:
        return record.module != "choice"

    log.addFilter(other)
    try:
        yield
    finally:
        log.removeFilter(other)


def _estimators(
    overrides: Sequence[str], point: VerificationPoint
) -> Mapping[str, Callable[[], Mapping[str, Hypergradient]]]:
    """Every option of the hypergradient group, put on every lower problem of this point."""
    from omegaconf import OmegaConf

    from mlorun.assemble import make
    from mlorun.config.compose import composed
    from mlorun.config.locations import options
    from mlorun.config.places import Allowed

    def maker(option: str) -> Callable[[], Mapping[str, Hypergradient]]:
        def estimates() -> Mapping[str, Hypergradient]:
            chosen = composed([*overrides, *(f"{node}.hypergradient={option}" for node in point.nodes)])
            plain: Any = OmegaConf.to_container(chosen.problems)
            allowed = Allowed.at("hypergradient", chosen.trusted_packages)
            return {
                node: make(plain[node]["hypergradient"], f"problems.{node}.hypergradient", allowed)
                for node in point.nodes
            }

        return estimates

    return {option: maker(option) for option in options("hypergradient") if option != "none"}
