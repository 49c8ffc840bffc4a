"""Three levels: a prior over the ridge penalties that a validation set tunes (nested hypergradients: Sato et al. 2021,
arXiv:2108.11694, and Choe et al. 2022, arXiv:2207.02849).

`fit`, the bottom, is ridge regression with a penalty for each weight. `penalties`, the middle, tunes their logarithms
on one validation set, under a normal prior around zero. `prior`, the top, learns on another set how strong it is.
"""

from __future__ import annotations

from torch import Tensor

from mlorun import Problem

from .penalties import Batch, Penalties, RidgeFit, weights_of


class PriorPenalties(Penalties):
    """Middle: the fit's error on its validation split plus exp(c) sum over j of a_j^2 / 2, with c from `prior`."""

    prior: Problem

    def training_step(self, batch: Batch) -> Tensor:
        return self.fit.error(batch) + (weights_of(self.prior).exp() * weights_of(self).square()).sum() / 2


class Prior(Problem):
    """Top: the fit's error on a validation split of its own."""

    fit: RidgeFit

    def training_step(self, batch: Batch) -> Tensor:
        return self.fit.error(batch)
