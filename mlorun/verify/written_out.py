"""Penalty methods, evolution and update maps written out once more: what those estimators are held against.

Plain torch autograd on the recorded losses, and torch's own optimizers for updates. Nothing is shared with the
estimators but the seed of random draws, which belongs to the definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from mlorun.core.program.update import UpdateRule
from mlorun.core.replay.views import default_dtype
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.evolution import Evolution
from mlorun.hypergradient.estimators.penalty import BOME, F2SA
from mlorun.hypergradient.estimators.update_map import UpdateMap
from mlorun.hypergradient.inner_loop import Options
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.autograd import gradient, leaves, partial_gradients

OPTION_STEP = 1e-6  # of a difference in an option of the optimizer, relative
NO_ZERO = 1e-150  # in place of a gradient entry of 0, where the root in an adaptive step has no derivative


class PenaltyWrittenOut(Hypergradient):
    """F2SA and BOME as gradients in lam of one number, F(y) + m (L(y) - L(z)) - F(z), with y, z and m held.

    y descends F(y) / m + L(y) or F(y) + m (L(y) - L(z)). Where it follows z, L(y) - <dL/dtheta(z), y> is in the place
    of L(y) there, and y starts as far from z as it was left.
    """

    def __init__(self, own: F2SA | BOME) -> None:
        self.own = own
        self.needs = own.needs

    def __call__(self, level: Level, v: Vector, carry: Mapping[str, Any] | None) -> tuple[dict[str, Vector], Any]:
        own = self.own
        z = tuple(t.detach() for t in level.theta)
        y, count = z, 0
        if carry is not None:
            kept, count = tuple(carry["y"]), carry["count"]
            y = tuple(t + s for t, s in zip(z, kept, strict=True)) if own.follow else kept
        rates = [float(rate) for rate in level.learning_rates] if isinstance(own.rate, str) else [own.rate] * len(z)
        for _ in range(own.steps):
            y, lam = leaves(y), leaves(level.flat_lam())
            multiplier = self._multiplier(level, y, z, count)
            if isinstance(own, F2SA):
                goal = _upper(level, y, lam) / multiplier + self._lowered(level, y, z, lam)
            else:
                goal = _upper(level, y, lam) + multiplier * self._lowered(level, y, z, lam)
            slopes = gradient(goal, y)
            y = tuple((t - rate * g).detach() for t, rate, g in zip(y, rates, slopes, strict=True))
        lam = leaves(level.flat_lam())
        multiplier = self._multiplier(level, leaves(y), z, count)
        excess = _objective(level, y, lam) - _objective(level, z, lam)
        moved = _upper(level, y, lam) - _upper(level, z, lam)
        return level.split_lam(gradient(multiplier * excess + moved, lam)), None

    def _lowered(self, level: Level, y: Vector, z: Vector, lam: Vector) -> Tensor:
        """L(y) as y descends it, ()."""
        value = _objective(level, y, lam)
        if self.own.follow:
            at = leaves(z)
            slope = gradient(_objective(level, at, tuple(t.detach() for t in lam)), at)
            value = value - sum(((g * t).sum() for g, t in zip(slope, y, strict=True)), torch.zeros_like(value))
        return value

    def _multiplier(self, level: Level, y: Vector, z: Vector, count: int) -> float:
        """gam of F2SA; of BOME what its barrier gives at y."""
        own = self.own
        if isinstance(own, F2SA):
            return own.gamma + own.growth * count
        lam = leaves(level.flat_lam())
        at = leaves(y)
        of_f = gradient(_upper(level, at, lam), (*at, *lam))
        of_q = gradient(self._lowered(level, at, z, lam) - _objective(level, z, lam), (*at, *lam))
        square = sum(float((q * q).sum()) for q in of_q)
        if not square:
            return 0.0
        return max(0.0, own.eta - sum(float((f * q).sum()) for f, q in zip(of_f, of_q, strict=True)) / square)

    def unpack(self, packed: dict[str, Any]) -> dict[str, Any]:
        return packed


class EvolutionWrittenOut(Hypergradient):
    """Evolution with the inner loop run again by torch's own optimizer."""

    def __init__(self, own: Evolution, rule: UpdateRule) -> None:
        self.own = own
        self.rule = rule
        self.needs = own.needs

    def __call__(self, level: Level, v: Vector, carry: int | None) -> tuple[dict[str, Vector], Any]:
        own = self.own
        draws = torch.Generator().manual_seed((own.seed * 1_000_003 + (carry or 0)) % 2**63)
        total = {name: [torch.zeros_like(t) for t in part] for name, part in level.lam.items()}
        for _ in range(own.samples):
            u = {
                name: tuple(torch.randn(t.shape, generator=draws).to(t.device, t.dtype) for t in part)
                for name, part in level.lam.items()
            }
            ahead, behind = (
                float(level.upper_loss(run_again(level, self.rule, u, sign * own.sigma)).detach()) for sign in (1, -1)
            )
            for name, part in total.items():
                for t, along in zip(part, u[name], strict=True):
                    t += (ahead - behind) / (2 * own.sigma * own.samples) * along
        return {name: tuple(part) for name, part in total.items()}, None


class UpdateMapWrittenOut(Hypergradient):
    """The last update by torch's own optimizer in its differentiable form, pulled back again and again."""

    def __init__(self, own: UpdateMap, rule: UpdateRule) -> None:
        self.own = own
        self.rule = rule
        self.needs = own.needs

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], Any]:
        trajectory, rule = level.trajectory, self.rule
        t = len(trajectory) - 1
        update = trajectory.updates[t]
        assert update.iterate is not None
        lam = {name: leaves(part) for name, part in trajectory.lam_at(t).items()}
        theta = leaves(update.iterate.theta)
        state = [
            {key: x.detach() if key == "step" else x.detach().requires_grad_() for key, x in entry.items()}
            for entry in update.iterate.state
        ]
        learned = trajectory.learned_options(trajectory.lam)
        numbers = {key: x.detach().reshape(-1).tolist() for key, x in learned.items()}
        slopes = _clipped(rule, partial_gradients(trajectory.loss(t, theta, lam), theta, create_graph=True))
        after, state_after = _step(rule, update.options, numbers, theta, state, slopes)
        by_option = {}
        for key, row in numbers.items():
            for index, number in enumerate(row):
                h = OPTION_STEP * max(1.0, abs(number))
                moved = ([*row[:index], number + s * h, *row[index + 1 :]] for s in (1, -1))
                sides = [_step(rule, update.options, {**numbers, key: each}, theta, state, slopes) for each in moved]
                by_option[key, index] = h, sides

        places = [(i, key) for i, entry in enumerate(state) for key in entry if key != "step"]
        inputs = (*theta, *(state[i][key] for i, key in places))
        flat = tuple(x for part in lam.values() for x in part)
        outputs = (*after, *(state_after[i][key] for i, key in places))
        p: Vector = (*v, *(torch.zeros_like(state[i][key]) for i, key in places))
        total = [torch.zeros_like(x) for x in flat]
        on_learned = {key: [0.0] * len(row) for key, row in numbers.items()}
        for _ in range(self.own.iterations + 1):
            value = torch.stack([(y * c).sum() for y, c in zip(outputs, p, strict=True)]).sum()
            for (key, index), (h, sides) in by_option.items():
                ahead, behind = ((*a, *(s[i][k] for i, k in places)) for a, s in sides)
                rises = ((c * (x - y)).sum().detach() for c, x, y in zip(p, ahead, behind, strict=True))
                on_learned[key][index] += float(sum(rises)) / (2 * h)
            pulled = gradient(value, (*inputs, *flat), retain_graph=True)
            p = pulled[: len(inputs)]
            total = [x + y for x, y in zip(total, pulled[len(inputs) :], strict=True)]
        for key, x in learned.items():
            live = tuple(parameter for part in trajectory.lam.values() for parameter in part)
            parts = gradient((x.reshape(-1) * x.new_tensor(on_learned[key])).sum(), live, retain_graph=True)
            total = [y + part for y, part in zip(total, parts, strict=True)]
        return level.split_lam(tuple(total)), None


def run_again(level: Level, rule: UpdateRule, u: Mapping[str, Vector], step: float) -> Vector:
    """theta at the end of the inner loop where lam is lam + step u at every update, in the start and in the options."""
    trajectory = level.trajectory

    def shifted(values: Mapping[str, Vector]) -> dict[str, Vector]:
        return {
            name: tuple(t.detach() + step * s for t, s in zip(part, u[name], strict=True))
            for name, part in values.items()
        }

    now = shifted(trajectory.lam)
    with torch.no_grad():
        start = trajectory.start(now)
        numbers = {key: x.reshape(-1).tolist() for key, x in trajectory.learned_options(now).items()}
    first = trajectory.updates[0].iterate
    assert first is not None
    theta, state = first.theta if start is None else start, list(first.state)
    for t, update in enumerate(trajectory.updates):
        theta = leaves(theta)
        slopes = _clipped(rule, partial_gradients(trajectory.loss(t, theta, shifted(trajectory.lam_at(t))), theta))
        theta, state = _step(rule, update.options, numbers, theta, state, slopes, differentiable=False)
    return tuple(t.detach() for t in theta)


def _step(
    rule: UpdateRule,
    options: Sequence[Options | None],
    numbers: Mapping[str, list[float]],
    theta: Vector,
    state: Sequence[Mapping[str, Tensor]],
    slopes: Sequence[Tensor | None],
    *,
    differentiable: bool = True,
) -> tuple[Vector, list[dict[str, Tensor]]]:
    """One step of a new optimizer of the same kind: parameters and state after it.

    numbers   the learned options, each one number for all groups or one for each
    """
    after, state_after = [], []
    for t, entry, each, index, slope in zip(theta, state, options, rule.groups, slopes, strict=True):
        if each is None or index is None or slope is None:  # as torch: without a gradient nothing moves
            after.append(t)
            state_after.append(dict(entry))
            continue
        parameter = t.clone() if differentiable else t.detach().clone()
        mode = {"differentiable": differentiable, "foreach": False, "fused": None}
        own = {key: row[index] if len(row) > 1 else row[0] for key, row in numbers.items()}
        group = {**each, **own, **mode, "params": [parameter]}
        if differentiable and group.get("momentum") and isinstance(rule.optimizer, SGD) and not entry:
            # torch detaches the gradient that a buffer starts with: the same number by a buffer of 0, undamped
            group["dampening"] = 0.0
            entry = {"momentum_buffer": torch.zeros_like(t)}
        kind: Any = type(rule.optimizer)
        optimizer = kind([group], lr=1.0, differentiable=differentiable)
        if entry:
            optimizer.state[parameter] = {key: x.clone() for key, x in entry.items()}
        parameter.grad = torch.where(slope == 0, slope + NO_ZERO, slope) if differentiable else slope.detach()
        with default_dtype(torch.promote_types(t.dtype, torch.float32)):  # of the step count that torch makes
            optimizer.step()
        after.append(parameter)
        state_after.append({k: x for k, x in optimizer.state[parameter].items() if isinstance(x, Tensor)})
    return tuple(after), state_after


def _clipped(rule: UpdateRule, slopes: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The gradient at its largest norm, as torch.nn.utils.clip_grad_norm_."""
    if rule.clip is None:
        return slopes
    length = torch.cat([g.reshape(-1) for g in slopes if g is not None]).norm()
    factor = torch.clamp(rule.clip / (length + 1e-6), max=1.0)
    return [None if g is None else g * factor for g in slopes]


def _objective(level: Level, theta: Vector, lam: Vector) -> Tensor:
    """L with the optimizer's weight decay, ()."""
    loss = level.loss(theta, level.split_lam(lam))
    if level.decay is None:
        return loss
    return loss + sum(wd * (t * t).sum() for wd, t in zip(level.decay, theta, strict=True)) / 2


def _upper(level: Level, theta: Vector, lam: Vector) -> Tensor:
    return level.upper_loss(theta, level.split_lam(lam))
