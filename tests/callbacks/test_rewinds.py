"""Going back to a checkpoint: a signal that came before is not forgotten, and steps become smaller each time."""

from __future__ import annotations

import pytest

import mlorun
from mlorun.callbacks.rewinds import Rewinds
from mlorun.errors import NonFiniteError

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_a_signal_that_came_before_ends_the_run_after_it_went_back() -> None:
    engine = mlorun.build(mlorun.compose("experiment=mwn_digits"))
    state = engine.state_dict()
    rewinds = Rewinds(most=1, factor=0.5)

    def load() -> int:
        engine.load_state_dict(state)
        return engine.step_count

    engine.stop()
    assert rewinds.rewind(engine, NonFiniteError("a loss is NaN"), load)
    assert engine.interrupted
    assert [group["lr"] for group in engine.problems["classifier"].optimizer.param_groups] == [0.05]
    assert not rewinds.rewind(engine, NonFiniteError("a loss is NaN"), load)
