"""Evolution strategies: the inner loop run again under perturbed hyperparameters, in antithetic pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.checks import at_least, positive
from mlorun.hypergradient.estimator import EVERY_CHANNEL, Hypergradient, Needs
from mlorun.hypergradient.estimators.unrolled import distance, update_watch
from mlorun.hypergradient.inner_loop import Checkpointing
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector


class Evolution(Hypergradient):
    """1 / (2 s N) sum over i of (F(theta_T(lam + s u_i)) - F(theta_T(lam - s u_i))) u_i, u_i ~ N(0, I)
    (Salimans et al. 2017, arXiv:1703.03864; for unrolled programs, Metz et al. 2019, arXiv:1810.10180).

    samples   N; 2 N T gradients of the lower loss
    sigma     s, in units of lam
    seed      of the u_i, which have a generator of their own: the run's random numbers do not move

    F is taken at the perturbed theta_T alone: its own dependence on lam is in the direct gradient. Both runs of a pair
    see the same batches and random numbers. The gradient of F blurred by s, with a relative standard deviation of
    about sqrt((Q + 1) / N) for Q hyperparameters. The carry counts calls, so that a resumed run draws alike.
    """

    needs = Needs(
        channels=EVERY_CHANNEL, inner_loop=Checkpointing(None, "sqrt"), upper_loss=True, reruns_inner_loop=True
    )

    def __init__(self, samples: int, sigma: float, seed: int) -> None:
        at_least("samples", samples, 1)
        positive("sigma", sigma)
        self.samples = samples
        self.sigma = sigma
        self.seed = seed
        self._watch = update_watch()

    def __call__(self, level: Level, v: Vector, carry: int | None) -> tuple[dict[str, Vector], int]:
        count = carry or 0
        if carry is None and not level.trajectory.rough:
            self._watch.look(level, _distance(level))
        draws = torch.Generator().manual_seed((self.seed * 1_000_003 + count) % 2**63)
        total = {name: vectors.zeros_like(part) for name, part in level.lam.items()}
        for _ in range(self.samples):
            u = {name: _normal(part, draws) for name, part in level.lam.items()}
            ahead, behind = (self._value(level, u, sign) for sign in (self.sigma, -self.sigma))
            rise = (ahead - behind) / (2 * self.sigma * self.samples)
            total = {name: vectors.add(part, u[name], alpha=rise) for name, part in total.items()}
        return total, count + 1

    @staticmethod
    def _value(level: Level, u: dict[str, Vector], step: float) -> torch.Tensor:
        theta = level.trajectory.run({name: vectors.scale(part, step) for name, part in u.items()})
        return level.upper_loss(theta).detach()


def _distance(level: Level) -> Tensor:
    """How far the inner loop, run again, ends from where it did, (), in units of its own length, beyond rounding."""
    trajectory = level.trajectory
    again, there = trajectory.run({}), trajectory.end
    return distance(again, there, since=trajectory.recorded_iterate(0).theta)


def _normal(like: Vector, draws: torch.Generator) -> Vector:
    return tuple(torch.randn(t.shape, generator=draws).to(t.device, t.dtype) for t in like)
