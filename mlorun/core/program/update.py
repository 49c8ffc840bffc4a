"""A problem's update: everything that happens between its gradient and its next parameters, and the same as a pure
function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Adadelta, Adagrad, Adam, Adamax, NAdam, Optimizer, RAdam, RMSprop, Rprop
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlorun.core.program.pure_steps import PureStep, pure_step_of
from mlorun.errors import ConfigError, did_you_mean
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.inner_loop import Iterate, LearnedOptions, Options, State
from mlorun.hypergradient.vectors import Vector

# these add weight_decay * theta to the gradient unless their group says `decoupled_weight_decay`
L2 = (SGD, Adadelta, Adagrad, Adam, Adamax, ASGD, NAdam, RAdam, RMSprop, Rprop)


@final
class UpdateRule:
    """The optimizer, learning rate schedule, clipping and loss scaling of one problem's parameters.

    optimizer, scheduler   used as they were built
    clip                   largest norm of the gradient at an optimizer step; None is no bound
    scaler                 of the loss, in fp16

    It is also the pure form of the same update, which estimators differentiate (hypergradient.recorded.PureUpdate).
    """

    def __init__(
        self,
        theta: tuple[nn.Parameter, ...],
        optimizer: Optimizer,
        scheduler: LRScheduler | None,
        clip: float | None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.theta = theta
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.clip = clip
        self.scaler = scaler
        self._numbers: dict[str, tuple[tuple[float, ...], tuple[Tensor, ...]]] = {}

    # the update itself

    def step(self, loss: Tensor, optimizer_step: Callable[[], None], finite: bool | Tensor = True) -> None:
        """Unscale, clip, step the optimizer, then the schedule. The gradient is in `.grad`, and stays there.

        loss             (), for schedules that look at it
        optimizer_step   `Problem.custom_optimizer_step`
        finite           whether the optimizer's step takes place; a tensor, (), is not waited for
        """
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.theta, self.clip)
        if isinstance(finite, Tensor):
            self._step_where(finite, optimizer_step)
        elif not finite:
            pass
        elif self.scaler is None:
            optimizer_step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(loss.detach())
        elif self.scheduler is not None:
            self.scheduler.step()

    @torch.no_grad()
    def _step_where(self, finite: Tensor, optimizer_step: Callable[[], None]) -> None:
        before = self.iterate(copy=True)
        optimizer_step()
        for parameter, theta, state in zip(self.theta, before.theta, before.state, strict=True):
            parameter.copy_(torch.where(finite, parameter, theta))
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor) and value.device == finite.device:
                    # the state of a first step starts from zeros
                    value.copy_(torch.where(finite, value, state.get(key, torch.zeros_like(value))))

    def scale_rates(self, factor: float) -> None:
        """Multiply every learning rate by `factor`, those that the schedule will give, too."""
        for group in self.optimizer.param_groups:
            for key in ("lr", "initial_lr", "max_lr", "min_lr"):
                if key in group:
                    group[key] = group[key] * factor
        schedules = [] if self.scheduler is None else [self.scheduler]
        while schedules:
            schedule = schedules.pop()
            schedules += getattr(schedule, "_schedulers", [])
            if hasattr(schedule, "base_lrs"):
                schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]

    def add_gradient(self, gradient: Vector) -> None:
        """Add to `.grad`."""
        for parameter, part in zip(self.theta, gradient, strict=True):
            parameter.grad = part if parameter.grad is None else parameter.grad + part

    def clear_gradient(self) -> None:
        """Let `.grad` go."""
        for parameter in self.theta:
            parameter.grad = None

    @torch.no_grad()
    def restart(self, start: Vector | None, options: LearnedOptions) -> None:
        """Begin an inner loop at what upper problems decide.

        start     new parameters, with which the optimizer forgets its state; None leaves both as they are
        options   new options of the optimizer, each one number or one for each group; reading them waits for the device
        """
        if start is not None:
            torch._foreach_copy_(self.theta, start)
            self.optimizer.state.clear()
        for key, value in options.items():
            groups = self.optimizer.param_groups
            for group, number in zip(groups, value.expand(len(groups)).tolist(), strict=True):
                group[key] = number

    # its numbers, () tensors for each parameter

    @property
    def learning_rates(self) -> tuple[Tensor, ...]:
        return self._tensors("lr", self._by_parameter(lambda group: float(group["lr"])))

    @property
    def momenta(self) -> tuple[Tensor, ...]:
        return self._tensors("momentum", self._by_parameter(lambda group: float(group.get("momentum", 0.0))))

    @property
    def mean_gradient(self) -> Vector | None:
        kept = [self.optimizer.state.get(parameter, {}) for parameter in self.theta]
        for key in ("momentum_buffer", "exp_avg"):
            if all(isinstance(state.get(key), Tensor) for state in kept):
                return tuple(state[key] for state in kept)
        return None

    @property
    def decay(self) -> tuple[Tensor, ...] | None:
        """wd for each parameter where the optimizer minimizes loss + wd norm(theta)^2 / 2; None where all are 0.

        Decoupled decay (AdamW, Muon) shrinks the parameters beside the step: no objective has it as its gradient.
        """
        if not isinstance(self.optimizer, L2):
            return None
        values = self._by_parameter(
            lambda group: 0.0 if group.get("decoupled_weight_decay") else float(group.get("weight_decay", 0.0))
        )
        return self._tensors("decay", values) if any(values) else None

    # the update as a pure function

    @property
    def pure(self) -> PureStep:
        """The optimizer's step for one parameter. Raises ConfigError for one that is not registered."""
        return pure_step_of(self.optimizer)

    def apply(
        self,
        options: Sequence[Options | None],
        iterate: Iterate,
        gradient: Sequence[Tensor | None],
        learned: LearnedOptions,
    ) -> Iterate:
        """Clipping and the optimizer's step, differentiable in iterate, gradient and learned options."""
        pure = self.pure
        theta: list[Tensor] = []
        state: list[State] = []
        for each, group, at, kept, slope in zip(
            options, self.groups, iterate.theta, iterate.state, self._clipped(gradient), strict=True
        ):
            if each is None or slope is None:  # as torch: without a gradient nothing moves
                theta.append(at)
                state.append(kept)
                continue
            own = {key: value if value.dim() == 0 else value[group] for key, value in learned.items()}
            after, state_after = pure.step({**each, **own}, kept, at, slope)
            theta.append(after)
            state.append(state_after)
        return Iterate(tuple(theta), tuple(state))

    def precondition(self, theta: Vector, gradient: Vector, x: Vector) -> Vector:
        """D x, with D = -d(theta')/d(gradient), a diagonal: each step is elementwise in the gradient.

        theta, gradient   where the step is taken; the gradient without the optimizer's weight decay

        The optimizer's state and options are the present ones. A parameter that it does not hold never moves: D = 0.
        """
        pure = self.pure
        product = []
        for parameter, options, at, slope, part in zip(self.theta, self.options(), theta, gradient, x, strict=True):
            if options is None:
                product.append(torch.zeros_like(part))
                continue
            leaf = slope.detach().requires_grad_()
            with torch.enable_grad():
                after, _ = pure.step(options, self.optimizer.state.get(parameter, {}), at, leaf)
            product.extend(derivatives.pull_back((after,), (leaf,), (-part,)))
        return tuple(product)

    @property
    def groups(self) -> tuple[int | None, ...]:
        """The number of each parameter's group in the optimizer; None for one that it does not hold."""
        found = {id(p): index for index, group in enumerate(self.optimizer.param_groups) for p in group["params"]}
        return tuple(found.get(id(parameter)) for parameter in self.theta)

    def options(self) -> tuple[Options | None, ...]:
        """The optimizer's options for each parameter now; None for one that it does not hold."""
        options: dict[int, Options] = {}
        for group in self.optimizer.param_groups:
            numbers = {key: value for key, value in group.items() if key != "params"}
            options |= dict.fromkeys(map(id, group["params"]), numbers)
        return tuple(options.get(id(parameter)) for parameter in self.theta)

    def iterate(self, *, copy: bool) -> Iterate:
        """The parameters and the optimizer's state for each of them now; `copy`: in memory of their own."""
        kept = self.optimizer.state
        state = tuple(
            {key: value.clone() if copy else value for key, value in kept[p].items() if isinstance(value, Tensor)}
            if p in kept
            else {}
            for p in self.theta
        )
        return Iterate(vectors.copy(self.theta) if copy else vectors.detach(self.theta), state)

    # its state

    def state_dict(self) -> dict[str, Any]:
        """Optimizer, schedule, loss scale, and what has been added to `.grad` so far."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "gradient": tuple(parameter.grad for parameter in self.theta),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from this state; the optimizer keeps its tensors."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state["scheduler"]))
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(dict(state["scaler"]))
        for parameter, gradient in zip(self.theta, state["gradient"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)

    def _clipped(self, gradient: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        if self.clip is None:
            return tuple(gradient)
        parts = [g for g in gradient if g is not None]
        # as torch.nn.utils.clip_grad_norm_
        length = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in parts]))
        factor = (self.clip / (length + 1e-6)).clamp(max=1.0)
        return tuple(None if g is None else g * factor for g in gradient)

    def _by_parameter(self, number: Callable[[dict[str, Any]], float]) -> tuple[float, ...]:
        numbers = {
            id(p): value for group in self.optimizer.param_groups for value in (number(group),) for p in group["params"]
        }
        return tuple(numbers.get(id(p), 0.0) for p in self.theta)

    def _tensors(self, key: str, values: tuple[float, ...]) -> tuple[Tensor, ...]:
        """The values as () tensors, made once and filled again where they change."""
        if key not in self._numbers:
            self._numbers[key] = values, tuple(_number(value, p) for value, p in zip(values, self.theta, strict=True))
        before, tensors = self._numbers[key]
        if before != values:
            for tensor, value in zip(tensors, values, strict=True):
                tensor.fill_(value)
            self._numbers[key] = values, tensors
        return tensors


def _number(value: float, like: Tensor) -> Tensor:
    """(), in float64, so that no precision is lost for a reference; MPS has none."""
    return torch.full(
        (), value, dtype=torch.float32 if like.device.type == "mps" else torch.float64, device=like.device
    )


def checked_options(owner: str, name: str, rule: UpdateRule, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Options that upper problems decide, each one that the optimizer's step can be differentiated in: () for all of
    its parameter groups, or (groups,).

    owner, name   the class and the problem that give them, for errors. Raises ConfigError.
    """
    if not options:
        return {}
    known = rule.pure.learnable
    groups = len(rule.optimizer.param_groups)
    checked: dict[str, Tensor] = {}
    for key, value in options.items():
        where = f"{owner}.optimizer_options"
        if key not in known:
            kind = type(rule.optimizer).__name__
            raise ConfigError(f"{key!r} of {kind} cannot be learned", where=where, fix=did_you_mean(key, known))
        if not isinstance(value, Tensor) or (value.numel() != 1 and value.shape != (groups,)):
            seen = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"{key!r} must be a tensor of one number, or of one for each parameter group of {name}'s optimizer",
                where=where,
                seen=seen,
                fix=f"shape () or ({groups},); {owner}.parameter_groups decides the groups",
            )
        checked[key] = value.reshape(()) if value.numel() == 1 else value
    if "lr" in checked and rule.scheduler is not None:
        raise ConfigError(
            f"the learning rate of {name} is both learned and scheduled",
            where=f"problems.{name}.scheduler",
            fix=f"{name}.scheduler=none",
        )
    return checked
