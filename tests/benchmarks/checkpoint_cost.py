"""What checkpoints cost a run: mwn_mnist with one every 100 steps beside the same without, in turns in one process.

    MLORUN_DATA=path/to/data python -m tests.benchmarks.checkpoint_cost
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import mlorun


def seconds(overrides: Sequence[str], folder: Path) -> float:
    """Of processor time, in all threads: on a busy machine it says more than the clock on the wall."""
    config = mlorun.compose(overrides)
    begin = time.process_time()
    result = mlorun.train(config, overrides, folder)
    assert result.status == "finished"
    return time.process_time() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    common = [
        "experiment=mwn_mnist", f"engine.train_iters={asked.steps}", "classifier.evaluate_on=[]", "engine.valid_every=0",
        "logger=jsonl", "threads=1", "checkpoint.seconds=0",
    ]  # fmt: skip
    with TemporaryDirectory() as folder:
        seconds([*common, "engine.train_iters=100"], Path(folder) / "warm")
        ratios = []
        for turn in range(asked.repeats):
            without = seconds(common, Path(folder) / f"{turn}-without")
            every_100 = seconds([*common, "checkpoint.every=100"], Path(folder) / f"{turn}-with")
            ratios.append(every_100 / without)
            print(f"{asked.steps} steps: {without:.2f} s without, {every_100:.2f} s with one every 100", flush=True)
    print(f"with / without: median {statistics.median(ratios):.3f}, {min(ratios):.3f} to {max(ratios):.3f}")


if __name__ == "__main__":
    main()
