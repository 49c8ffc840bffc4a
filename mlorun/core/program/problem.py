"""A problem: a module, its optimizer, its data, and the loss that a recipe author writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from mlorun.core.program.clock import Clock
from mlorun.core.program.schedule import UpdateSchedule
from mlorun.core.program.update import UpdateRule, checked_options
from mlorun.data.stream import Stream
from mlorun.errors import ConfigError, GraphError, did_you_mean
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.vectors import Vector

# a () tensor, or a function that makes one, called only when somebody looks
Metric = Tensor | Callable[[], Tensor]
MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
MakeScheduler = Callable[[Optimizer], LRScheduler]


class Problem(ABC):
    """One problem of the program. Subclass it and write `training_step`.

    Inside a loss, other problems are attributes by their names, and a problem called is its module called:
    `self.reweight(x)` is `self.reweight.module(x)`.

    optimizer, scheduler   built objects, used as they are; or callables that take what `parameter_groups` gives, and
                           the optimizer. A scheduler steps once an optimizer step.
    stream                 endless batches; None where `get_batch` is overridden
    update_schedule        how often it steps
    gradient_clip          largest norm of the gradient at an optimizer step; None is no bound
    hypergradient          how the problems above differentiate through this one's optimum
    """

    def __init__(
        self,
        *,
        name: str,
        module: nn.Module,
        optimizer: Optimizer | MakeOptimizer,
        scheduler: LRScheduler | MakeScheduler | None = None,
        stream: Stream | None = None,
        update_schedule: UpdateSchedule | None = None,
        gradient_clip: float | None = None,
        hypergradient: Hypergradient | None = None,
    ) -> None:
        self.name = name
        self.module = module
        self.stream = stream
        self.update_schedule = update_schedule or UpdateSchedule()
        self.hypergradient = hypergradient
        self.clock = Clock()
        self.artifact_sink: Callable[[str, Any, int], None] | None = None
        self.peers_read: set[str] = set()  # the names of those that a loss has asked for
        self._peers: dict[str, Problem] = {}
        theta = self._checked_parameters()
        if not theta:
            raise ConfigError(
                f"{name} has no trainable parameters",
                where=f"problems.{name}.module",
                seen=type(module).__name__,
                fix="unfreeze some, or drop the problem",
            )
        built = optimizer if isinstance(optimizer, Optimizer) else optimizer(self.parameter_groups())
        # what the optimizer does not hold never moves: it is a constant, to hypergradients too
        held = {id(parameter) for group in built.param_groups for parameter in group["params"]}
        theta = tuple(parameter for parameter in theta if id(parameter) in held)
        if not theta:
            raise ConfigError(
                f"the optimizer of {name} holds none of its trainable parameters",
                where=f"problems.{name}.optimizer",
                seen=type(built).__name__,
                fix="build it from what parameter_groups returns",
            )
        self.theta: Vector = theta  # inside a loss, what is put in place of them
        self.update = UpdateRule(
            theta,
            built,
            scheduler if scheduler is None or isinstance(scheduler, LRScheduler) else scheduler(built),
            gradient_clip,
        )

    def _checked_parameters(self) -> tuple[nn.Parameter, ...]:
        """What `trainable_parameters` gives. Raises ConfigError for anything but parameters that have a shape."""
        title, place = type(self).__name__, f"problems.{self.name}"
        lazy = [name for name, p in self.module.named_parameters() if isinstance(p, UninitializedParameter)]
        if lazy:
            raise ConfigError(
                f"{self.name} has parameters without a shape, which an optimizer cannot be given",
                where=f"{place}.module",
                seen=f"{', '.join(lazy[:4])} of a lazy module",
                fix="give the sizes: nn.Linear(64, 10) in place of nn.LazyLinear(10)",
            )
        given = self.trainable_parameters()
        theta = tuple(given) if isinstance(given, Iterable) else None
        if theta is None or not all(isinstance(p, nn.Parameter) for p in theta):
            wrong = type(given if theta is None else next(p for p in theta if not isinstance(p, nn.Parameter)))
            raise ConfigError(
                f"{title}.trainable_parameters gives what is no parameter",
                where=place,
                seen=wrong.__name__,
                fix="return parameters of modules, e.g. self.module.parameters()",
            )
        return theta

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer, as it was built."""
        return self.update.optimizer

    @property
    def scheduler(self) -> LRScheduler | None:
        """The schedule of the learning rate, as it was built."""
        return self.update.scheduler

    @property
    def step(self) -> int:
        """Global steps done before this evaluation; where a loss is evaluated again, those before its first time."""
        return self.clock.step

    @abstractmethod
    def training_step(self, batch: Any) -> Tensor | Mapping[str, Metric]:
        """The loss on a batch: a () tensor, or a mapping with `loss` and further metrics.

        A metric is a () tensor, or a function that makes one: that is called only when a report is due.

        Called more often than there are steps: estimators evaluate it again, on the same batch with the same random
        numbers, buffers and `step`. So it keeps no counts and prints nothing; `grad_callback` is called once a batch.
        """

    def evaluation_step(self, batch: Any) -> Mapping[str, Metric]:
        """Metrics on a batch in eval mode, each a mean over its samples; by default `training_step`'s.

        What stands under `outputs`, a tensor or a nesting of tensors with a row for each sample, is no metric: it is
        collected for `evaluation_end`.
        """
        result = self.training_step(batch)
        return {"loss": result} if isinstance(result, Tensor) else result

    def evaluation_end(self, outputs: Any) -> Mapping[str, Metric] | None:
        """Metrics of a whole split, e.g. F1 or the area under a curve, in eval mode and without gradients; if any.

        outputs   what every `evaluation_step` gave under `outputs`, in one, on the device; None where it gave nothing
        """
        return {}

    def on_run_end(self) -> None:  # noqa: B027
        """After the last global step of a run, in eval mode and without gradients: e.g. to save a picture."""

    @final
    def save_artifact(self, name: str, value: Any) -> None:
        """Write a picture, a table, an array or a text into the run's folder, artifacts/NAME-STEP, and give it to every
        logger that shows such things; nothing where there is no run folder.

        value   numbers in [0, 1] of shape (H, W), (1 or 3, H, W), or a batch of those; a figure of matplotlib; a list
                of mappings with the same keys; a text; any other array

        Raises RunError for another value, and for a name that no file can have. For `evaluation_end` and `on_run_end`:
        a loss is evaluated more often than there are steps.
        """
        if self.artifact_sink is not None:
            self.artifact_sink(name, value, self.step)

    def trainable_parameters(self) -> Iterable[nn.Parameter]:
        """What this problem optimizes; by default every parameter of the module that requires a gradient."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def parameter_groups(self) -> Iterable[nn.Parameter] | Iterable[dict[str, Any]]:
        """What the optimizer is made of, as torch's take it: the trainable parameters, all in one group; or one mapping
        for each group, `{"params": [...]}`, with the options that differ from the config's.
        """
        return self.trainable_parameters()

    @property
    def makes_batches(self) -> bool:
        """Whether its batches are a recipe's own: its stream alone cannot make them again."""
        plain = getattr(self.get_batch, "__func__", None) is Problem.get_batch
        return self.stream is None or not plain

    def get_batch(self) -> Any:
        """The batch of the next step; by default the next one of the stream."""
        if self.stream is None:
            raise ConfigError(
                f"{self.name} has no data",
                where=f"problems.{self.name}.split",
                fix="name a split, or override get_batch",
            )
        return next(self.stream)

    def initial_parameters(self) -> Iterable[Tensor] | None:
        """Where every inner loop starts: one tensor for each of this problem's parameters, in order; None is where
        the last one ended.

        A differentiable function of upper problems' parameters, e.g. `self.meta.module.parameters()` (MAML). The
        optimizer starts afresh too. `unrolled`, `forward` and `evolution` differentiate through it.
        """
        return None

    def optimizer_options(self) -> Mapping[str, Tensor]:
        """Options of the optimizer that upper problems decide: `{"lr": self.tuner.module.log_lr.exp()}`, each () for
        all parameters, or (groups,) with a number for each of `parameter_groups`.

        Read where an inner loop starts, and kept until the next. `lr`, `weight_decay`, and `momentum` where the
        optimizer has it. `unrolled`, `forward` and `evolution` differentiate through them.
        """
        return {}

    def on_inner_loop_start(self) -> None:  # noqa: B027
        """Before the first step of each inner loop, e.g. to start from random weights; not where roll_back repeats it.

        What it writes is a constant to a hypergradient: a start that upper problems decide belongs into
        `initial_parameters`.
        """

    def grad_callback(self) -> None:  # noqa: B027
        """After the gradient of every micro-batch has been added to `.grad`."""

    def param_callback(self) -> None:  # noqa: B027
        """After every optimizer step, e.g. to project the parameters."""

    def epoch_callback(self) -> None:  # noqa: B027
        """After the last step of each epoch of this problem's stream."""

    def custom_optimizer_step(self) -> None:
        """The optimizer step; by default `self.optimizer.step()`. The gradient is in `.grad`."""
        self.optimizer.step()

    def state_dict(self) -> Mapping[str, Any]:
        """What this class keeps between steps beside its module, as plain containers, numbers, texts and tensors.

        Module, optimizer, schedule and stream are saved anyway. Override it together with `load_state_dict`.
        """
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Go on from what `state_dict` gave."""

    @final
    def restart_inner_loop(self) -> None:
        """Take the start and the optimizer's options from the upper problems that decide them, if any do."""
        start = self.checked_start()
        options = self.learned_options()
        if start is not None or options:
            self.update.restart(start, options)

    @final
    def checked_start(self) -> Vector | None:
        """What `initial_parameters` gives. Raises ConfigError where it does not fit the parameters."""
        start = self.initial_parameters()
        if start is None:
            return None
        given = start
        start = tuple(given) if isinstance(given, Iterable) else ()
        if not isinstance(given, Iterable) or not all(isinstance(t, Tensor) for t in start):
            raise ConfigError(
                f"{type(self).__name__}.initial_parameters gives no tensors",
                where=f"problems.{self.name}",
                seen=repr(given)[:80],
                fix="one tensor for each parameter, in order, e.g. self.meta.module.parameters(); None for no start",
            )
        if [t.shape for t in start] != [p.shape for p in self.theta]:
            raise ConfigError(
                f"{type(self).__name__}.initial_parameters does not fit {self.name}'s parameters",
                where=f"problems.{self.name}",
                seen=f"{len(start)} tensors of shapes {[tuple(t.shape) for t in start][:4]}",
                fix=f"one for each of {len(self.theta)} parameters, in order, "
                f"shapes {[tuple(p.shape) for p in self.theta][:4]}",
            )
        return start

    @final
    def learned_options(self) -> dict[str, Tensor]:
        """What `optimizer_options` gives, () or (groups,) each. Raises ConfigError for what it cannot take."""
        return checked_options(type(self).__name__, self.name, self.update, self.optimizer_options())

    @final
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # reached only where normal lookup failed: the name of another problem, or a slip
        peers = self.__dict__.get("_peers", {})
        if name in peers:
            self.peers_read.add(name)
            return peers[name]
        if name.startswith("_") or not peers:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise UnknownPeer(
            f"{type(self).__name__} reads self.{name}, which is neither an attribute nor a problem",
            where=f"problems.{self.name}",
            fix=did_you_mean(name, [peer for peer in peers if peer != self.name]),
        )

    @final
    def bind_peers(self, peers: Mapping[str, Problem]) -> None:
        """Learn the other problems of the program, by name."""
        self._peers = dict(peers)


class UnknownPeer(GraphError, AttributeError):
    """A loss names a problem that does not exist."""


def loss_of(result: Tensor | Mapping[str, Metric], name: str) -> Tensor:
    """The loss in what a step returned. Raises ConfigError if there is none."""
    loss = result if isinstance(result, Tensor) else result.get("loss") if isinstance(result, Mapping) else None
    if isinstance(loss, Tensor):
        return loss
    raise ConfigError(
        f"{name}'s training_step returned {type(result).__name__}",
        where=f"problems.{name}",
        seen=f"keys {', '.join(map(str, result))}" if isinstance(result, Mapping) else repr(result)[:80],
        fix="return a scalar loss tensor, or a mapping with a tensor under `loss`",
    )


def metrics_of(result: Tensor | Mapping[str, Metric], where: str) -> dict[str, Tensor]:
    """Every metric in what a step returned, made by now, one number each; without graphs.

    where   the method that returned it. Raises ConfigError for what is no metric.
    """
    metrics = {"loss": result} if isinstance(result, Tensor) else result
    if not isinstance(metrics, Mapping):
        fix = "return a mapping with metrics"
        raise ConfigError(f"{where} returned {type(result).__name__}", where=where, seen=repr(result)[:80], fix=fix)
    with torch.no_grad():
        made = ((name, value() if callable(value) else value) for name, value in metrics.items() if name != "outputs")
        return {name: _number(value, f"{where}: {name}") for name, value in made}


def _number(value: Any, where: str) -> Tensor:
    if isinstance(value, Real):
        return torch.tensor(float(value))
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach()
    shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f", {value!r}"[:80]
    raise ConfigError(
        "a metric is one number",
        where=where,
        seen=f"{type(value).__name__}{shape}",
        fix="a () tensor, e.g. its mean; pictures, tables and texts go through self.save_artifact in evaluation_end",
    )
