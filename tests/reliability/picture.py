"""A picture of a run that is killed five times and resumed, beside the same run when nobody kills it.

    python -m tests.reliability.picture docs/killed_five_times.png

Meta-Weight-Net on digits, 600 steps, a checkpoint every 50. SIGKILL comes at random instants. Each attempt has a colour
of its own, and begins with a dot, at the checkpoint that it goes on from. What the one before it had done after that
checkpoint is done again: both curves lie on each other.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlorun
from mlorun.run.folder import RunFolder
from tests.reliability.processes import attempt, exit_code, forked, outcome, prepare, start

KILLS, STEPS = 5, 600
OVERRIDES = (
    "experiment=mwn_digits", f"engine.train_iters={STEPS}", "engine.log_every=5", "engine.valid_every=100",
    "checkpoint.every=50", "checkpoint.seconds=0", "logger=jsonl", "threads=1",
)  # fmt: skip

Points = list[tuple[int, float]]


def losses(folder: Path) -> Points:
    """Step and loss of the classifier, of every whole line of metrics.jsonl so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    events = [event for event in map(json.loads, lines) if event["source"] == "classifier" and event["kind"] == "train"]
    return [(event["step"], event["metrics"]["loss"]) for event in events]


def killed(config: Any, folder: Path, draw: random.Random) -> list[Points]:
    """What each attempt has computed; the last one was let live."""
    parts = []
    for number in range(KILLS + 1):
        until = draw.uniform(number + 0.3, number + 1) * STEPS / (KILLS + 1)
        pid = forked(lambda: attempt(config, folder))
        while number < KILLS and max((step for step, _ in losses(folder)), default=0) < until:
            time.sleep(0.002)
        if number < KILLS:
            os.kill(pid, signal.SIGKILL)
        code = exit_code(pid)
        assert code == (-signal.SIGKILL if number < KILLS else 0), f"attempt {number + 1} ended with {code}"
        begin = RunFolder(folder).facts()["attempts"][-1]["from_step"]
        parts.append([point for point in losses(folder) if point[0] >= begin])
    return parts


def draw_picture(whole: Points, parts: list[Points], same: str, file: Path) -> None:
    """Both runs, one above the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    above.plot(*zip(*whole, strict=True), color="black", linewidth=1)
    above.set_title("nobody kills it", fontsize=10, loc="left")
    for number, part in enumerate(parts):
        steps, values = zip(*part, strict=True)
        below.plot(steps, values, color=f"C{number}", linewidth=5 - 0.6 * number, marker="o", markevery=[0])
        if number < KILLS:
            below.axvline(steps[-1], color=f"C{number}", linewidth=1, linestyle=":")
            below.annotate("SIGKILL", (steps[-1], 1), xycoords=("data", "axes fraction"), fontsize=7, rotation=90,
                           ha="right", va="top")  # fmt: skip
    below.set_title(f"killed {KILLS} times and resumed: {same}", fontsize=10, loc="left")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.set_yscale("log")
        axes.set_ylabel("loss of the classifier")
    figure.savefig(file, dpi=90, metadata={"Software": None})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    prepare()
    config = mlorun.compose(list(OVERRIDES))
    with TemporaryDirectory() as name:
        home = Path(name)
        assert exit_code(forked(lambda: start(config, home / "whole"))) == 0
        parts = killed(config, home / "killed", random.Random(given.seed))
        expected, found = outcome(home / "whole"), outcome(home / "killed")
        whole = losses(home / "whole")
    equal = expected == found
    same = "the same parameters and metrics.jsonl, bit for bit" if equal else "OTHER PARAMETERS OR METRICS"
    draw_picture(whole, parts, same, given.file)
    ends = ", ".join(str(part[-1][0]) for part in parts[:-1])
    print(f"killed after steps {ends}; params_sha256 {expected[0][:16]} and {found[0][:16]}: {same}")
    return int(not equal)


if __name__ == "__main__":
    sys.exit(main())
