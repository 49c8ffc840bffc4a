"""What reweighting really gives: the table of README.md, on long-tailed MNIST (imbalance 100, 784-200-10, 3000 steps).

    MLORUN_DATA=path/to/data python -m tests.benchmarks.headline            every row, seeds 0 to 4; half an hour
    python -m tests.benchmarks.headline adjusted_mnist --seeds 0 1          some experiments, some seeds
    python -m tests.benchmarks.headline --picture recipes/learned_augmentation.png

    --root      where run folders go (runs/headline); a run that finished there is not run again
    --with      further overrides of every run, e.g. a smaller engine.train_iters
    --split     whose accuracy is shown (test)
    --picture   draw the size over time and deformed digits of learned_augmentation_mnist, seed 0; needs matplotlib

Prints a Markdown table: test accuracy, mean and standard deviation over the seeds, how many these were, and CPU seconds
of a run. alone: only an upper problem sees the balanced images; too: the classifier may train on them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlorun


@dataclass(frozen=True)
class Row:
    """One method. `alone` has the balanced images for an upper problem alone; `both` may train on them too."""

    title: str
    levels: int
    alone: str | None
    both: str | None
    chosen: str


HALVES = "halves of balanced"  # recipes/README.md, "Learned augmentation"
ROWS = (
    Row("plain", 1, "mwn_mnist_baseline", "mwn_mnist_baseline_union", "as published"),
    Row("Meta-Weight-Net, to the letter", 2, "mwn_mnist", None, "as published"),
    Row("the same, which sees the label", 2, "class_aware_mwn_mnist", None, HALVES),
    Row("learned logit offsets", 2, "logit_adjustment_mnist", None, HALVES),
    Row("logit adjustment, cosine, averaged weights", 1, "adjusted_mnist", "adjusted_mnist_union", HALVES),
    Row("the same, blur and noise", 1, "adjusted_blurred_mnist", "adjusted_blurred_mnist_union", HALVES),
    Row(
        "logit adjustment, classes resampled, deformations of a size set by hand",
        1,
        "fixed_augmentation_mnist",
        "fixed_augmentation_mnist_union",
        HALVES,
    ),
    Row(
        "**the same, the size learned from 0.17 pixels**",
        2,
        "learned_augmentation_mnist",
        "learned_augmentation_mnist_union",
        HALVES,
    ),
)


@dataclass(frozen=True)
class Runs:
    """What the finished runs of one experiment gave."""

    accuracies: tuple[float, ...]
    seconds: tuple[float, ...]

    def __str__(self) -> str:
        spread = f" ± {statistics.stdev(self.accuracies):.2f}" if len(self.accuracies) > 1 else ""
        return f"{statistics.mean(self.accuracies):.2f}{spread} ({len(self.accuracies)})"


def run(root: Path, experiment: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The result of one run, from its folder if it finished there before; with `cpu_seconds`."""
    folder = root / experiment / f"seed-{seed}"
    if not (folder / "cpu_seconds.json").is_file():
        words = [f"experiment={experiment}", f"seed={seed}", "engine.valid_every=0", "threads=1", "logger=jsonl"]
        words += ["checkpoint.seconds=0", *overrides]
        start = time.process_time()
        result = mlorun.train(mlorun.compose(words), words, folder)
        if result.status != "finished":
            sys.exit(f"{folder}: {result.status}: {result.error}")
        (folder / "cpu_seconds.json").write_text(json.dumps(time.process_time() - start))
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return {**found, "cpu_seconds": json.loads((folder / "cpu_seconds.json").read_text())}


def runs(root: Path, experiment: str, seeds: Sequence[int], overrides: Sequence[str], split: str) -> Runs:
    """Every seed of one experiment."""
    results = [run(root, experiment, seed, overrides) for seed in seeds]
    made = Runs(
        tuple(result["metrics"][f"{split}/accuracy"] for result in results),
        tuple(result["cpu_seconds"] for result in results),
    )
    each = "  ".join(f"{accuracy:.2f}" for accuracy in made.accuracies)
    print(f"{experiment}: {made}  ({each})  {statistics.mean(made.seconds):.0f} s", file=sys.stderr, flush=True)
    return made


def lines(made: dict[str, Runs]) -> Iterator[str]:
    """The table, in Markdown."""
    yield "| method | levels | alone | too | s | chosen by |"
    yield "|---|---|---|---|---|---|"
    for row in ROWS:
        cells = [made.get(experiment or "") for experiment in (row.alone, row.both)]
        if any(cells):
            seconds = [f"{statistics.mean(cell.seconds):.0f}" for cell in cells if cell]
            shown = [str(cell) if cell else "" for cell in cells]
            yield f"| {row.title} | {row.levels} | {shown[0]} | {shown[1]} | {', '.join(seconds)} | {row.chosen} |"


def picture(folder: Path, path: Path) -> None:
    """The size over time, and digits before and after; from the metrics and the artifact of one run."""
    import matplotlib.pyplot as plt

    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    seen = [event for event in events if event["source"] == "augmentation" and event["kind"] == "train"]
    (digits,) = (folder / "artifacts").glob("deformed-*.png")
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=(1, 1.1), layout="constrained")
    left.plot([event["step"] for event in seen], [event["metrics"]["size"] for event in seen])
    left.set(xlabel="step", ylabel="root mean square, pixels", yscale="log")
    right.imshow(plt.imread(digits), cmap="gray")
    right.set_axis_off()
    right.set_title("top row: balanced images; below: deformed", fontsize=9)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = [name for row in ROWS for name in (row.alone, row.both) if name]
    parser.add_argument("experiments", nargs="*", metavar="experiment", help=", ".join(known))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--root", type=Path, default=Path("runs/headline"))
    parser.add_argument("--with", dest="overrides", nargs="+", default=[])
    parser.add_argument("--split", default="test")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.picture is not None:
        run(args.root, "learned_augmentation_mnist", 0, args.overrides)
        picture(args.root / "learned_augmentation_mnist" / "seed-0", args.picture)
        return
    wanted = args.experiments or known
    made = {name: runs(args.root, name, args.seeds, args.overrides, args.split) for name in wanted}
    print("\n".join(lines(made)))


if __name__ == "__main__":
    main()
