"""Few-shot regression: Model-Agnostic Meta-Learning (MAML, Finn et al. 2017, arXiv:1703.03400)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad, vmap

from mlorun import Metric, Problem

Pairs = tuple[Tensor, Tensor]
# {"support": (x, y), "query": (x, y)}, each (tasks, points, 1)
Tasks = Mapping[str, Pairs]


class Learner(Problem):
    """Lower: squared error on the support points of one task, from the weights of the problem `meta`.

    Every inner loop is a task of its own; its split holds tasks, one a batch.
    """

    meta: Problem

    def __init__(self, **problem: Any) -> None:
        super().__init__(**problem)
        self._task: Tasks | None = None

    def initial_parameters(self) -> Iterable[Tensor]:
        return self.meta.module.parameters()

    def on_inner_loop_start(self) -> None:
        self._task = None

    def state_dict(self) -> Mapping[str, Any]:
        return {"task": self._task}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._task = state["task"]

    def task(self) -> Tasks:
        """The task at hand, drawn at its first use in an inner loop."""
        if self._task is None:
            self._task = super().get_batch()
        return self._task

    def get_batch(self) -> Pairs:
        return self.task()["support"]

    def training_step(self, batch: Pairs) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x.flatten(0, 1)), y.flatten(0, 1))


class Meta(Problem):
    """Upper: the adapted learner's squared error on the query points of the same task. Equation 1 of the paper."""

    learner: Learner

    def get_batch(self) -> Pairs:
        return self.learner.task()["query"]

    def training_step(self, batch: Pairs) -> Tensor:
        x, y = batch
        return F.mse_loss(self.learner(x.flatten(0, 1)), y.flatten(0, 1))

    def evaluation_step(self, batch: Tasks) -> Mapping[str, Metric]:
        """Mean query error over the tasks, before and after as many steps of gradient descent as in training."""
        (x, y), (query_x, query_y) = batch["support"], batch["query"]
        weights = dict(self.module.named_parameters())
        rate = self.learner.optimizer.param_groups[0]["lr"]

        def error(weights: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(functional_call(self.module, dict(weights), (x,)), y)

        def adapted_error(x: Tensor, y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
            adapted = weights
            for _ in range(self.learner.update_schedule.unroll_steps):
                slopes = grad(error)(adapted, x, y)
                adapted = {name: w - rate * slopes[name] for name, w in adapted.items()}
            return error(adapted, query_x, query_y)

        before = vmap(lambda x, y: error(weights, x, y))(query_x, query_y)
        after: Tensor = vmap(adapted_error)(x, y, query_x, query_y)
        return {"error_before": torch.mean(before), "error_after": after.mean()}
