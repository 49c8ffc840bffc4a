"""Fixed point of the optimizer's own update, whichever: the adjoint of its last step, iterated (Grazzi et al. 2020)."""

from __future__ import annotations

from typing import Any

import torch

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least
from mlorun.hypergradient.crosses.choice import needs_differences
from mlorun.hypergradient.estimator import Hypergradient, Needs
from mlorun.hypergradient.estimators.unrolled import Pullback, added, by_differences, decided, update_watch
from mlorun.hypergradient.inner_loop import Checkpointing, Iterate
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class UpdateMap(Hypergradient):
    """(dPhi/dlam)^T sum over k = 0..K of ((dPhi/dz)^T)^k (v, 0), z parameters and optimizer state, Phi the last
    update (arXiv:2006.16218): the derivative of the fixed point z = Phi(z, lam).

    iterations   K; one pull-back each, about a Hessian product

    Phi is the step of any optimizer that has a registered pure step, clipping included, on the last batch, with its
    step count held.
    Converges where Phi contracts. For SGD with momentum it is `fixed_point`, taken at the last update.
    """

    needs = Needs(channels=frozenset({"loss", "options"}), inner_loop=Checkpointing(1, "iterates"))

    def __init__(self, iterations: int) -> None:
        at_least("iterations", iterations, 0)
        self.iterations = iterations
        self._watch = update_watch()

    def __call__(self, level: Level, v: Vector, carry: bool | None) -> tuple[dict[str, Vector], bool]:
        differences = needs_differences(level, v) if carry is None else carry
        trajectory = level.trajectory
        t = len(trajectory) - 1
        at = trajectory.recorded_iterate(t)
        learned = {k: x.detach().requires_grad_() for k, x in trajectory.learned_options(trajectory.lam).items()}
        pull_back = Pullback(trajectory, t, at, learned, differences=differences)
        if not trajectory.rough:
            self._watch.look(level, pull_back.distance(trajectory.end))
        total = {name: vectors.zeros_like(part) for name, part in level.lam.items()}
        on_learned = {key: torch.zeros_like(x) for key, x in learned.items()}
        p = Iterate(v, tuple({} for _ in v))
        for k in range(self.iterations + 1):
            p, on_lam, on_options = pull_back(p, retain_graph=k < self.iterations)
            total = added(total, on_lam)
            on_learned = {key: x + on_options[key] for key, x in on_learned.items()}
        return decided(trajectory, total, on_learned), differences

    def in_use(self, carry: Any) -> str:
        return type(self).__name__ + by_differences(carry)
