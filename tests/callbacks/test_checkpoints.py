"""When a checkpoint is saved, and which stay."""

from __future__ import annotations

from pathlib import Path

import pytest

import mlorun
from mlorun.callbacks.checkpoints import Checkpoints, When
from mlorun.run import checkpoint

SECONDS_A_STEP = 4.0


@pytest.mark.parametrize(
    ("when", "steps"),
    [
        (When(every=0, seconds=10.0, keep=9), [3, 6, 7]),
        (When(every=0, seconds=0, keep=9), [7]),
        (When(every=2, seconds=0, keep=9), [2, 4, 6, 7]),
        (When(every=2, seconds=0, keep=2), [6, 7]),
        (When(every=2, seconds=10.0, keep=9), [2, 4, 6, 7]),
        (When(every=5, seconds=10.0, keep=9), [3, 5, 7]),
    ],
    ids=str,
)
def test_checkpoints_come_by_steps_and_by_seconds_and_the_last_state_always(
    when: When, steps: list[int], tmp_path: Path
) -> None:
    engine = mlorun.build(mlorun.compose(["experiment=mwn_digits", "engine.train_iters=7", "threads=1"]))
    checkpoints = Checkpoints(
        tmp_path, tmp_path / "metrics.jsonl", when, clock=lambda: SECONDS_A_STEP * engine.step_count
    )
    engine.run(lambda event: None, [checkpoints])
    checkpoints.close()
    assert sorted(checkpoint.step_of(path) for path in checkpoint.saved(tmp_path)) == steps
