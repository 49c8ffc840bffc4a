"""REINFORCE: the score function, for discrete draws that an upper problem's parameters decide."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mlorun.errors import ConfigError
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.checks import at_least, one_of
from mlorun.hypergradient.draws import taped
from mlorun.hypergradient.estimator import Hypergradient, Needs
from mlorun.hypergradient.inner_loop import Checkpointing
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class Reinforce(Hypergradient):
    """(F(theta_T) - b) d log p(z) / d lam, z every draw of the inner loop (Williams 1992; for architecture search,
    Zoph and Le 2017, arXiv:1611.01578).

    baseline   b: "average" is the running average of earlier F; "none" is 0
    decay      of that average: mean <- decay mean + (1 - decay) F

    A lower loss draws by `mlorun.hypergradient.draws.draw(distribution)`. Unbiased with either baseline, from the first
    call on: the average does not know the draws at hand, and is 0 before there are any. The carry is that average.
    """

    needs = Needs(channels=frozenset({"draws"}), inner_loop=Checkpointing(None, "iterates"), upper_loss=True)

    def __init__(self, baseline: Literal["average", "none"], decay: float) -> None:
        one_of("baseline", baseline, ("average", "none"))
        at_least("decay", decay, 0)
        if decay >= 1:
            raise ConfigError("decay must be below 1", where="decay", seen=f"{decay}")
        self.baseline = baseline
        self.decay = decay

    def __call__(self, level: Level, v: Vector, carry: Tensor | None) -> tuple[dict[str, Vector], Tensor]:
        reward = level.upper_loss(level.theta).detach()
        advantage = reward if carry is None or self.baseline == "none" else reward - carry
        mean = reward if carry is None else self.decay * carry + (1 - self.decay) * reward
        return {name: vectors.scale(part, advantage) for name, part in scores(level).items()}, mean


def scores(level: Level) -> dict[str, Vector]:
    """d/dlam of the log-probability of every draw of the inner loop, by lam. One forward pass an update."""
    trajectory = level.trajectory
    total = {name: vectors.zeros_like(part) for name, part in level.lam.items()}
    for t, at in enumerate(trajectory.iterates(0, len(trajectory))):
        lam = {name: tuple(x.requires_grad_() for x in part) for name, part in trajectory.lam_at(t).items()}
        with taped() as tape:
            trajectory.loss(t, at.theta, lam)
        log_probabilities = [p for p in tape if p.requires_grad]
        if not log_probabilities:
            continue
        flat = [x for part in lam.values() for x in part]
        score = vectors.split(derivatives.gradient(torch.stack(log_probabilities).sum(), flat), lam)
        total = {name: vectors.add(part, score[name]) for name, part in total.items()}
    return total
