"""Almost no inner loop: meta-learning that adapts the head alone (ANIL, Raghu et al. 2020, arXiv:1909.09157)."""

from __future__ import annotations

from torch import Tensor

from .few_shot import Classification, Weights


class HeadLearner(Classification):
    """Lower: each task's cross entropy by a head of its own, on the features of the problem `meta`.

    The head is the last layer of that problem's network; the layers below are the same for every task.
    """

    def start(self) -> Weights:
        return tuple(self.meta.module[-1].parameters())  # type: ignore[index]

    def inputs(self, inputs: Tensor) -> Tensor:
        body = self.meta.module[:-1]  # type: ignore[index]
        features: Tensor = body(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
        return features
