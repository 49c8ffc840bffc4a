"""Unrolled differentiation: reverse mode through the updates of the inner loop, all of them or the last K."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import ALL_BUT_DRAWS, Hypergradient, Level
from mlorun.hypergradient.solve import at_least
from mlorun.hypergradient.trajectory import Iterate, Keep, Trajectory
from mlorun.hypergradient.updates import State
from mlorun.hypergradient.vectors import Vector

# optimizer state that counts rather than flows
COUNTERS = frozenset({"step"})


class Unrolled(Hypergradient):
    """(d theta_T / d lam)^T v through theta_{t+1} = Phi_t(theta_t, lam) (Maclaurin et al. 2015, arXiv:1502.03492;
    Franceschi et al. 2017, arXiv:1703.01785; MAML, arXiv:1703.03400). With p_T = v, for t = T - 1, ..., 0:

        g += (d Phi_t / d lam)^T p_{t+1},    p_t = (d Phi_t / d theta_t)^T p_{t+1}

    over parameters and optimizer state together; at t = 0, g += (d theta_0 / d lam)^T p_0 where an upper problem
    decides the start.

    steps    differentiate the last K updates of the inner loop (Shaban et al. 2019, arXiv:1810.10667); None is all
    memory   "iterates" keeps parameters and optimizer state before every update; "sqrt" before every sqrt(T)-th, and
             computes those between again, at one gradient more an update

    lam acts through the losses, through `initial_parameters` and through `optimizer_options`. Micro-batches, clipping
    and schedules are differentiated as they happened; the graph of one update is alive at a time. Optimizers: those of
    updates.py. Where lam moves during the inner loop (a lower optimum), every reading counts as one of the same.
    """

    sees = ALL_BUT_DRAWS

    def __init__(self, steps: int | None, memory: Literal["iterates", "sqrt"]) -> None:
        if steps is not None:
            at_least("steps", steps, 1)
        if memory not in ("iterates", "sqrt"):
            raise ConfigError(f"memory is {memory!r}", where="memory", fix="iterates or sqrt")
        self.keeps = Keep(steps, memory)

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], None]:
        return reverse(level.trajectory, v), None


def reverse(trajectory: Trajectory, v: Vector) -> dict[str, Vector]:
    """(d theta_T / d lam)^T v, by lam."""
    total = {name: vectors.zeros_like(x) for name, x in trajectory.lam.items()}
    learned = {k: x.detach().requires_grad_() for k, x in trajectory.learned(trajectory.lam).items()}
    on_learned = {k: torch.zeros_like(x) for k, x in learned.items()}
    p = Iterate(v, tuple({} for _ in v))
    for start, stop in reversed(trajectory.segments()):
        iterates = trajectory.iterates(start, stop)
        for t in reversed(range(max(start, trajectory.first), stop)):
            p, on_lam, on_options = pull_back(trajectory, t, iterates.pop(), p, learned)
            total = {name: vectors.add(x, on_lam[name]) for name, x in total.items()}
            on_learned = {k: x + on_options[k] for k, x in on_learned.items()}
    for outputs, cotangents in (
        (trajectory.start(trajectory.lam) if trajectory.first == 0 else None, p.theta),
        (tuple(trajectory.learned(trajectory.lam).values()), tuple(on_learned.values())),
    ):
        if outputs:
            part = through(outputs, trajectory.lam, cotangents)
            total = {name: vectors.add(x, part[name]) for name, x in total.items()}
    return total


def pull_back(
    trajectory: Trajectory, t: int, at: Iterate, p: Iterate, learned: Mapping[str, Tensor]
) -> tuple[Iterate, dict[str, Vector], dict[str, Tensor]]:
    """p^T dPhi_t, as cotangents of the iterate, of lam and of the learned options. One gradient and its pull-back."""
    lam = {name: tuple(x.requires_grad_() for x in vector) for name, vector in trajectory.lam_at(t).items()}
    theta = tuple(x.detach().requires_grad_() for x in at.theta)
    state = tuple(
        {k: x.detach() if k in COUNTERS else x.detach().requires_grad_() for k, x in entry.items()}
        for entry in at.state
    )
    gradient = trajectory.gradient(t, theta, lam, create_graph=True)
    with torch.enable_grad():
        after = trajectory.apply(t, Iterate(theta, state), gradient, learned)
    outputs, cotangents = [], []
    for x, c in zip(after.theta, p.theta, strict=True):
        outputs.append(x)
        cotangents.append(c)
    for entry, wanted in zip(after.state, p.state, strict=True):
        for key, c in wanted.items():
            outputs.append(entry[key])
            cotangents.append(c)
    flat_state = [(i, k, x) for i, entry in enumerate(state) for k, x in entry.items() if k not in COUNTERS]
    flat_lam = [x for vector in lam.values() for x in vector]
    inputs = [*theta, *(x for _, _, x in flat_state), *learned.values(), *flat_lam]
    found = iter(_vjp(outputs, inputs, cotangents))
    on_theta = tuple(next(found) for _ in theta)
    on_state: list[State] = [{} for _ in theta]
    for i, key, _ in flat_state:
        on_state[i][key] = next(found)
    on_options = {key: next(found) for key in learned}
    on_lam = {name: tuple(next(found) for _ in vector) for name, vector in lam.items()}
    return Iterate(on_theta, tuple(on_state)), on_lam, on_options


def through(outputs: Sequence[Tensor], lam: Mapping[str, Vector], cotangents: Sequence[Tensor]) -> dict[str, Vector]:
    """cotangents^T d outputs / d lam, by lam."""
    flat = [x for vector in lam.values() for x in vector]
    found = iter(_vjp(outputs, flat, cotangents))
    return {name: tuple(next(found) for _ in vector) for name, vector in lam.items()}


def _vjp(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> Vector:
    reached = [(y, c) for y, c in zip(outputs, cotangents, strict=True) if y.requires_grad]
    if not reached or not inputs:
        return vectors.zeros_like(inputs)
    ys, cs = zip(*reached, strict=True)
    return vectors.filled(torch.autograd.grad(ys, inputs, cs, allow_unused=True), inputs)
