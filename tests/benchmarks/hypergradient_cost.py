"""Cost of one hypergradient on mwn_mnist, in units of one lower gradient.

    MLORUN_DATA=path/to/data python -m tests.benchmarks.hypergradient_cost

Each estimator runs as the engine runs it: a Level is made, replayed on the last step's batch, and swept; v is a given
vector. The unit is one replayed gradient of the classifier's loss, taken in turn with the estimators, a block each; the
ratio is the median over blocks. CG and Neumann are also given with the bound 2.5 K + 2.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

import mlorun
from mlorun.core.engine import Engine
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.central_difference import CentralDifference
from mlorun.hypergradient.crosses.cross import Cross
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.crosses.forward_over_reverse import ForwardOverReverse
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.estimators.unrolled import Unrolled
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.conjugate_gradient import ConjugateGradient
from mlorun.hypergradient.solvers.identity import Identity
from mlorun.hypergradient.solvers.neumann import Neumann
from mlorun.hypergradient.solvers.solver import Solver
from mlorun.hypergradient.sweep import Carries, sweep

BLOCKS, CALLS = 40, 10


def estimators() -> dict[str, tuple[Hypergradient, float | None]]:
    """Name to (estimator, bound in lower gradients)."""

    def implicit(solver: Solver, cross: Cross) -> Hypergradient:
        return Implicit(solver, cross, "after", "full")

    rows: dict[str, tuple[Hypergradient, float | None]] = {
        "t1t2": (implicit(Identity(1.0), ForwardOverReverse()), 1.5),
        "t1t2, double backward": (implicit(Identity(1.0), DoubleBackward()), None),
        "darts": (implicit(Identity(1.0), CentralDifference(0.01, relative=False)), 2.2),
        "unrolled, 1 step": (Unrolled(None, "iterates"), None),
    }
    for count in (5, 10):
        bound = 2.5 * count + 2
        rows[f"cg {count}"] = implicit(ConjugateGradient(count, 1.0, 0.0, False), ForwardOverReverse()), bound
        rows[f"neumann {count}"] = implicit(Neumann(count, 1e-3), ForwardOverReverse()), bound
    return rows


def block(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    for _ in range(CALLS):
        run()
    return (time.perf_counter() - start) / CALLS


def caller(engine: Engine, estimate: Hypergradient) -> Callable[[], None]:
    """One indirect part, as the adjoint's sweep takes it."""
    cotangents = {"classifier": tuple(0.01 * torch.randn_like(t) for t in engine.problems["classifier"].theta)}
    estimates = {"classifier": estimate}
    views = engine.recorder.views
    carries: Carries = {}

    def run() -> None:
        nonlocal carries
        with engine.program.replay():
            nodes = engine.adjoint.nodes("reweight", views, estimates)
            carries = sweep(nodes, cotangents, carries, views.upper_loss("reweight")).carries

    return run


def main(overrides: list[str]) -> None:
    """Print the table."""
    config = mlorun.compose(["experiment=mwn_mnist", "engine.train_iters=20", *overrides])
    engine = mlorun.build(config, record_all=True)
    engine.run()

    def gradient() -> object:
        with engine.program.replay():
            return Level(engine.recorder.views.view("classifier", ())).gradient

    runs = {name: caller(engine, estimate) for name, (estimate, _) in estimators().items()}
    for run in (gradient, *runs.values()):
        block(run)
    units, times = [], {name: [] for name in runs}  # type: ignore[var-annotated]
    for _ in range(BLOCKS):
        units.append(block(gradient))
        for name, run in runs.items():
            times[name].append(block(run))
    print(f"one lower gradient: {1000 * statistics.median(units):.2f} ms")
    for name, (_, bound) in estimators().items():
        ratios = [t / unit for t, unit in zip(times[name], units, strict=True)]
        limit = "" if bound is None else f"  (bound {bound:g})"
        print(f"{name:22s} {1000 * statistics.median(times[name]):7.2f} ms  {statistics.median(ratios):6.2f}{limit}")
    assert vectors.norm(engine.problems["classifier"].theta) > 0


if __name__ == "__main__":
    main(sys.argv[1:])
