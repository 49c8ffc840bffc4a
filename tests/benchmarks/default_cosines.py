"""Do the hypergradients point the right way out of the box? Cosines to the exact one, in runs of a shipped experiment.

    python -m tests.benchmarks.default_cosines              every default, one seed, three steps: some two minutes
    python -m tests.benchmarks.default_cosines f2sa "f2sa gamma=100" --seeds 0 1 2 --steps 25 50 100 200 400

    ROWS           options, each with changes of it; the defaults of eight of them if none
    --experiment   with one upper problem, which acts by the loss of one lower problem (mwn_digits)
    --with         further overrides, as classifier.optimizer.weight_decay=0.01
    --seeds        a run each
    --steps        where the run is looked at, right before the upper problem's step
    --batches      pairs of a lower and an upper batch that a mean is taken over (8)
    --damping      of the exact solve (0.01)

Every run trains with its own estimator, whose carry is warm. Hypergradients of single batches are noisy, so there are
three cosines:

    all data   of the mean over the batches, at the parameters and the carry of the run, to the hypergradient of the two
               whole splits by (H + damping I) x = v, with MINRES. Without weight decay an MLP's Hessian is singular and
               in part negative: there the damping decides about the sign of what is called exact
    mean       of the same to the mean of the damped exact hypergradients of the same batches
    batch      of the one that the run takes, to the exact one of its batch as `mlorun verify` has it: least squares,
               without damping

Then loss and accuracy of the classifier on the whole upper split, from which the upper problem learns, after the last
step. The test split is not read.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

import mlorun
from mlorun.core.adjoint import Estimates
from mlorun.core.engine import Engine
from mlorun.core.replay.views import Views
from mlorun.hypergradient import vectors
from mlorun.hypergradient.crosses.double_backward import DoubleBackward
from mlorun.hypergradient.estimators.implicit import Implicit
from mlorun.hypergradient.solvers.indefinite import Minres
from mlorun.hypergradient.sweep import Carries, sweep
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.point import VerificationPoint, cosine
from mlorun.verify.program import implicit_edges

ROWS = ("t1t2", "darts", "cg", "neumann", "evolution", "soba", "f2sa", "bome")
ITERATIONS = 200  # of a damped solve


@dataclass(frozen=True)
class Look:
    """One step of one run: the three cosines, and the lengths of the mean hypergradient and of the exact one."""

    step: int
    cosines: tuple[float, float, float]
    length: float
    exact_length: float


@dataclass(frozen=True)
class Run:
    """The looks at one run, and what the classifier's loss and accuracy on the upper split were at the last."""

    looks: tuple[Look, ...]
    loss: float
    accuracy: float
    seconds: float


class Pair:
    """An upper problem and the lower one below it, on batches of one's choice."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        (self.upper,) = (name for name in engine.graph.names if engine.graph.nodes_on_paths(name))
        (self.lower,) = engine.graph.nodes_on_paths(self.upper)

    def batches(self, count: int) -> Iterator[Views]:
        """What estimators would see on the next epochs' batches."""
        for lower, upper in zip(*(self._following(name) for name in (self.lower, self.upper)), strict=False):
            if count == 0:
                return
            count -= 1
            yield self._on(lower, upper)

    def everything(self) -> Views:
        """The same on the two whole splits."""
        return self._on(*(self.engine.problems[name].stream.split for name in (self.lower, self.upper)))  # type: ignore[union-attr]

    def _following(self, name: str) -> Iterator[object]:
        stream = self.engine.problems[name].stream
        assert stream is not None
        epoch = stream.epoch
        while True:
            epoch += 1
            for position in range(stream.batches_per_epoch):
                yield stream.at({"epoch": epoch, "position": position})

    def _on(self, lower: object, upper: object) -> Views:
        program, views = self.engine.program, self.engine.recorder.views
        low, up = program.snapshot(lower, None), program.snapshot(upper, None)
        histories = {name: views.history(name) for name in self.engine.graph.names}
        updates = [*histories[self.lower].updates]
        if updates:
            updates[-1] = replace(updates[-1], snapshots=(low,))
        histories[self.lower] = replace(histories[self.lower], last=(low,), updates=updates)
        histories[self.upper] = replace(histories[self.upper], current=up)
        return Views(program, histories)

    def hypergradient(self, views: Views, estimates: Estimates | None, carries: Carries) -> Vector:
        """By the run's own estimator where there are no others."""
        adjoint = self.engine.adjoint
        cotangents = adjoint.cotangents(self.upper, views.upper_loss(self.upper)({}), views)[1]
        with self.engine.program.replay():
            nodes = adjoint.nodes(self.upper, views, estimates)
            total = sweep(nodes, cotangents, carries, views.upper_loss(self.upper)).total(self.upper)
        assert total is not None
        return tuple(t.detach().double() for t in total)


def look(engine: Engine, batches: int, damping: float) -> Look:
    """At the program right before the upper problem's step."""
    pair = Pair(engine)
    carries = engine.adjoint.carries[pair.upper]
    exact = {pair.lower: Implicit(Minres(ITERATIONS, damping, 1e-3), DoubleBackward(), "after", "full")}
    got: list[Vector] = []
    wanted: list[Vector] = []
    for views in pair.batches(batches):
        got.append(pair.hypergradient(views, None, carries))
        wanted.append(pair.hypergradient(views.to(torch.float64), exact, {}))
    whole = pair.hypergradient(pair.everything().to(torch.float64), exact, {})
    point = VerificationPoint(engine, pair.upper)
    edge = (pair.lower, pair.upper)
    one = cosine(point.estimate()[edge], implicit_edges(point)[0][edge])
    mean = _mean(got)
    return Look(
        engine.step_count + 1,
        (cosine(mean, whole), cosine(mean, _mean(wanted)), one),
        float(vectors.norm(mean)),
        float(vectors.norm(whole)),
    )


def run(program: Sequence[str], row: str, seed: int, steps: Sequence[int], batches: int, damping: float) -> Run:
    """One run with the estimator of `row`."""
    start = time.perf_counter()
    option, *changes = row.split()
    base = [*program, f"seed={seed}", f"engine.train_iters={max(steps)}"]
    lower = Pair(mlorun.build(mlorun.compose(base))).lower
    chosen = [f"{lower}.hypergradient={option}", *(f"{lower}.hypergradient.{change}" for change in changes)]
    engine = mlorun.build(mlorun.compose([*base, *chosen]))
    engine.probe()
    pair = Pair(engine)
    looks = []
    for action in engine.actions():
        if action.problem == pair.upper and engine.step_count + 1 in steps:
            looks.append(look(engine, batches, damping))
    split = engine.problems[pair.upper].stream.split  # type: ignore[union-attr]
    with torch.no_grad():
        result = engine.problems[pair.upper].training_step(split)
    loss, accuracy = (float(m() if callable(m) else m) for m in (result["loss"], result["accuracy"]))  # type: ignore[index]
    return Run(tuple(looks), loss, accuracy, time.perf_counter() - start)


def _mean(some: Sequence[Vector]) -> Vector:
    return tuple(torch.stack(parts).mean(dim=0) for parts in zip(*some, strict=True))


def _summary(name: str, runs: Sequence[Run]) -> str:
    cells = []
    for index in range(3):
        every = [one.cosines[index] for each in runs for one in each.looks]
        every = [value for value in every if value == value]
        positive = sum(value > 0 for value in every)
        cells.append(
            f"{statistics.median(every):+.2f} / {min(every):+.2f} / {positive} of {len(every)}" if every else "zero"
        )
    losses, accuracies = [each.loss for each in runs], [each.accuracy for each in runs]
    cells.append(f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})")
    cells.append(f"{statistics.mean(accuracies):.1f} ({min(accuracies):.1f} to {max(accuracies):.1f})")
    return f"| `{name}` | " + " | ".join(cells) + " |"


def main(arguments: Sequence[str]) -> None:
    """Print a line for every run, then the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", default=ROWS)
    parser.add_argument("--experiment", default="mwn_digits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[25, 50, 100])
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--damping", type=float, default=1e-2)
    parser.add_argument("--with", nargs="+", default=[], dest="overrides")
    options = parser.parse_intermixed_args(list(arguments))
    table = []
    for row in options.rows:
        runs = []
        for seed in options.seeds:
            try:
                one = run(
                    [f"experiment={options.experiment}", *options.overrides],
                    row,
                    seed,
                    options.steps,
                    options.batches,
                    options.damping,
                )
            except mlorun.MlorunError as error:
                print(f"{row}, seed {seed}: {error.message}", flush=True)
                continue
            runs.append(one)
            points = "; ".join(
                f"{at.step}: {' '.join(f'{c:+.2f}' for c in at.cosines)} ({at.length:.1e} of {at.exact_length:.1e})"
                for at in one.looks
            )
            print(f"{row}, seed {seed}, {one.seconds:.0f} s: {points}; {one.loss:.3f} {one.accuracy:.1f}", flush=True)
        if runs:
            table.append(_summary(row, runs))
    print("\n| | all data, median / worst / above 0 | mean | batch | loss (range) | accuracy (range) |")
    print("|---|---|---|---|---|---|")
    print("\n".join(table))


if __name__ == "__main__":
    main(sys.argv[1:])
