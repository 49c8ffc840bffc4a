"""An engine by hand: single actions of its plan, one gradient, one sweep."""

from __future__ import annotations

from collections.abc import Mapping

from mlorun.core.engine import Engine
from mlorun.core.program.schedule import Action
from mlorun.hypergradient.sweep import Carries, Swept, sweep
from mlorun.hypergradient.vectors import Vector


def execute(engine: Engine, *actions: Action) -> None:
    """These actions one after another, whatever the engine's plan says."""
    for action in actions:
        engine.stepper.execute(action, False, engine.step_count)


def gradient_of_a_step(engine: Engine, upper: str) -> Vector:
    """The gradient of `upper` as its next step takes it: estimators keep what they carry. No parameter moves."""
    problem = engine.problems[upper]
    batch = problem.get_batch()
    engine.recorder.before_loss(upper, batch, None)
    loss = problem.training_step(batch)
    return engine.adjoint.gradient(upper, loss).vector  # type: ignore[arg-type]


def swept(engine: Engine, upper: str, cotangents: Mapping[str, Vector], carries: Carries) -> Swept:
    """What each edge adds to the gradient of `upper` on its next batch, starting from these carries."""
    views = engine.recorder.views.on_batch(upper, engine.recorder.next_snapshot(upper))
    with engine.program.replay():
        return sweep(engine.adjoint.nodes(upper, views), cotangents, carries, views.upper_loss(upper))
