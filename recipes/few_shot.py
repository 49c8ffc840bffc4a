"""Few-shot learning: a batch of tasks, each with a copy of one network, trained side by side from a learned start."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from mlorun import Metric, Problem

Weights = tuple[Tensor, ...]
Points = tuple[Tensor, Tensor]
# {"support": (inputs, targets), "query": (inputs, targets)}, each (tasks, points, ...)
Tasks = Mapping[str, Points]


def side_by_side(network: nn.Module, weights: Weights, inputs: Tensor) -> Tensor:
    """The outputs of a copy of the network for each task: weights (tasks, *shape) each, inputs (tasks, points, ...)."""
    names = [name for name, _ in network.named_parameters()]

    def one(weights: Weights, inputs: Tensor) -> Tensor:
        outputs: Tensor = functional_call(network, dict(zip(names, weights, strict=True)), (inputs,))
        return outputs

    outputs: Tensor = vmap(one)(weights, inputs)
    return outputs


class Copies(nn.Module):
    """A copy of a network for each task: inputs (tasks, points, ...) to (tasks, points, outputs)."""

    def __init__(self, network: nn.Module, tasks: int) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)  # gives the form of the copies, never its values
        self.copies = nn.ParameterList(p.detach().expand(tasks, *p.shape).clone() for p in network.parameters())

    def forward(self, inputs: Tensor) -> Tensor:
        return side_by_side(self.network, tuple(self.copies), inputs)


class Learner(Problem):
    """Lower: the sum over a batch of tasks of each one's loss on its support points, each by a copy of its own.

    Every inner loop draws new tasks, and starts every copy from the weights of the problem `meta`.
    """

    meta: Problem

    def __init__(self, **problem: Any) -> None:
        super().__init__(**problem)
        self._tasks: Tasks | None = None

    @abstractmethod
    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of each task, (tasks,)."""

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Metric]:
        """What is measured beside the losses, a mean over the tasks each."""
        return {}

    def start(self) -> Weights:
        """The weights that tasks start from, as a function of the problem `meta`."""
        return tuple(self.meta.module.parameters())

    def starts(self, tasks: int) -> Weights:
        """Where each of so many tasks starts."""
        return tuple(w.expand(tasks, *w.shape) for w in self.start())

    def inputs(self, inputs: Tensor) -> Tensor:
        """What the copies are given."""
        return inputs

    def objective(self, weights: Weights, support: Points) -> Tensor:
        """What the inner loop descends, ()."""
        inputs, targets = support
        return self.losses(self.outputs(weights, inputs), targets).sum()

    def outputs(self, weights: Weights, inputs: Tensor) -> Tensor:
        """Of the copies with these weights, (tasks, points, outputs)."""
        network: nn.Module = self.module.network  # type: ignore[assignment]
        return side_by_side(network, weights, self.inputs(inputs))

    def training_step(self, batch: Points) -> Tensor:
        return self.objective(self.theta, batch)

    def initial_parameters(self) -> Iterable[Tensor] | None:
        return self.starts(len(self.theta[0]))

    def on_inner_loop_start(self) -> None:
        self._tasks = None

    @torch.no_grad()
    def restart(self) -> None:
        """Go to the start, for a learner whose start is not differentiated."""
        torch._foreach_copy_(self.theta, self.starts(len(self.theta[0])))
        self.optimizer.state.clear()

    def tasks(self) -> Tasks:
        """The tasks at hand, drawn at their first use in an inner loop."""
        if self._tasks is None:
            self._tasks = super().get_batch()
        return self._tasks

    def get_batch(self) -> Points:
        return self.tasks()["support"]

    def state_dict(self) -> Mapping[str, Any]:
        return {"tasks": self._tasks}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._tasks = state["tasks"]


class Regression(Learner):
    """By squared error."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().flatten(1).mean(1)


class Classification(Learner):
    """By cross entropy; targets (tasks, points) int64."""

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Metric]:
        return {"accuracy": lambda: 100 * (outputs.argmax(2) == targets).float().mean()}


class Meta(Problem):
    """Upper: the adapted copies' mean loss on the query points of the same tasks (Finn et al. 2017, equation 1).

    evaluate_after   steps of the learner's gradient descent on new tasks after which they are evaluated
    """

    learner: Learner

    def __init__(self, *, evaluate_after: Sequence[int], **problem: Any) -> None:
        super().__init__(**problem)
        self.evaluate_after = tuple(evaluate_after)

    def get_batch(self) -> Points:
        return self.learner.tasks()["query"]

    def training_step(self, batch: Points) -> Mapping[str, Metric]:
        inputs, targets = batch
        learner = self.learner
        outputs = learner.outputs(learner.theta, inputs)
        return {"loss": learner.losses(outputs, targets).mean(), **learner.metrics(outputs, targets)}

    def evaluation_step(self, batch: Tasks) -> Mapping[str, Metric]:
        (support, (inputs, targets)), learner = (batch["support"], batch["query"]), self.learner

        def measure(weights: Weights) -> Mapping[str, Metric]:
            outputs = learner.outputs(weights, inputs)
            return {"error": learner.losses(outputs, targets).mean(), **learner.metrics(outputs, targets)}

        return adapted(
            learner.starts(len(inputs)),
            lambda weights: learner.objective(weights, support),
            measure,
            learner.optimizer.param_groups[0]["lr"],
            self.evaluate_after,
        )


def adapted(
    weights: Weights,
    objective: Callable[[Weights], Tensor],
    measure: Callable[[Weights], Mapping[str, Metric]],
    rate: float,
    evaluate_after: Sequence[int],
) -> dict[str, Metric]:
    """What is measured after so many steps of gradient descent on new tasks, by metric and steps."""
    found: dict[str, Metric] = {}
    for step in range(max(evaluate_after, default=-1) + 1):
        if step in evaluate_after:
            found |= {f"{key}_after_{step}": value for key, value in measure(weights).items()}
        slopes = grad(objective)(weights)
        weights = tuple(w - rate * slope for w, slope in zip(weights, slopes, strict=True))
    return found
