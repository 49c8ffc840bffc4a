"""What a checkpoint of mwn_mnist costs, beside 100 steps of it, in one process.

MLORUN_DATA=path/to/data python -m tests.benchmarks.checkpoint_cost
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import mlorun
from mlorun.callbacks.checkpoints import Checkpoints, When

STEPS, REPEATS = 100, 15


def main() -> None:
    config = mlorun.compose(["experiment=mwn_mnist", "threads=1", "classifier.evaluate_on=[]"])
    engine = mlorun.build(config)
    steps = engine.steps()

    def train() -> None:
        for _ in range(STEPS):
            next(steps)

    def timed(work: Callable[[], None]) -> tuple[float, float]:
        """Milliseconds on the wall, and of processor time in all threads."""
        wall, processor = time.perf_counter(), time.process_time()
        work()
        return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)

    train()
    with TemporaryDirectory() as folder:
        checkpoints = Checkpoints(Path(folder), Path(folder) / "metrics.jsonl", When(STEPS, 0, 2))
        rows = []
        for _ in range(REPEATS):
            training = timed(train)
            held = timed(lambda: checkpoints.save(engine))
            written = timed(checkpoints.wait)
            rows.append((training[1], held[0], held[1] + written[1]))
        checkpoints.close()
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    print(f"{STEPS} steps: {medians[0]:.0f} ms of processor time, median of {REPEATS}")
    print(f"a checkpoint: {medians[1]:.1f} ms until the training goes on ({medians[1] / medians[0]:.1%}), ", end="")
    print(f"{medians[2]:.1f} ms of processor time in all ({medians[2] / medians[0]:.1%})")


if __name__ == "__main__":
    main()
