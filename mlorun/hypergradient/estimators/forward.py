"""Forward mode: d theta_t / d lam carried along with training, for a few hyperparameters and loops of any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mlorun.errors import ConfigError, GraphError
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.checks import at_least
from mlorun.hypergradient.crosses.choice import fault_of_double_backward
from mlorun.hypergradient.estimator import ALL_BUT_DRAWS, Hypergradient, Needs
from mlorun.hypergradient.estimators.unrolled import reverse
from mlorun.hypergradient.inner_loop import COUNTERS, Iterate
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.trajectory import Trajectory
from mlorun.hypergradient.vectors import Vector


@dataclass(frozen=True)
class Tangents:
    """d theta / d q and d state / d q for every scalar q of every lam: one iterate each, by the name of lam."""

    rows: Mapping[str, tuple[Iterate, ...]]


class Forward(Hypergradient):
    """Z' = (d Phi_t / d theta) Z + d Phi_t / d lam at every update, the hypergradient Z^T v (Williams and Zipser 1989;
    Franceschi et al. 2017, arXiv:1703.01785, algorithm 2).

    largest_size   refuse more hyperparameters than this: each is a row of Z, of the size of the parameters and the
                   optimizer's state, and about two gradients an update
    kept           share of Z, in [0, 1], that the next inner loop begins with. 0: Z is that of the inner loop alone,
                   and equal to `unrolled` over the whole of it. 1: Z goes on through all of training, as in real-time
                   hyperparameter optimization (section 3.3 of the same paper): the derivative of theta in a lam that
                   changes by the same amount at all updates so far. Between them, a loop n loops back counts kept^n

    No history is kept. lam acts through the losses, through `optimizer_options` (with kept > 0, only where there is no
    warm-up: in it they do not hold yet) and, with kept = 0, through `initial_parameters`. Where kept > 0, a Z that is
    not finite begins anew with the next inner loop.
    """

    def __init__(self, largest_size: int, kept: float) -> None:
        at_least("largest_size", largest_size, 1)
        if not 0 <= kept <= 1:
            raise ConfigError("kept must lie in [0, 1]", where="kept", seen=f"{kept}")
        self.largest_size = largest_size
        self.kept = kept
        self.needs = Needs(channels=ALL_BUT_DRAWS, tangents=True, every_loop=kept > 0)

    def __call__(self, level: Level, v: Vector, carry: bool | None) -> tuple[dict[str, Vector], bool]:
        fault = fault_of_double_backward(level, v) if carry is None else None
        if fault is not None:
            raise _wrong_kernel(level.name, fault)
        tangents: Tangents | None = level.tangents
        if tangents is None:  # no update so far: all were left out
            return reverse(level.trajectory, v, store_segments=True)[0], True
        return {
            name: vectors.shaped(torch.stack([vectors.dot(row.theta, v) for row in tangents.rows[name]]), like)
            for name, like in level.lam.items()
        }, True

    def require_size(self, name: str, theta: int, lam: int) -> None:
        if lam > self.largest_size:
            raise ConfigError(
                f"forward mode carries {lam} copies of {name}'s parameters, one a hyperparameter",
                where=f"problems.{name}.hypergradient.largest_size",
                seen=f"largest_size: {self.largest_size}",
                fix=f"{name}.hypergradient=unrolled, or raise largest_size",
            )

    def kept_tangents(self, tangents: Tangents) -> Tangents | None:
        if not self.kept:
            return None
        return Tangents({name: tuple(_share(row, self.kept) for row in rows) for name, rows in tangents.rows.items()})

    def pack_tangents(self, tangents: Tangents | None) -> Any:
        if tangents is None:
            return None
        return {name: tuple(row.pack() for row in rows) for name, rows in tangents.rows.items()}

    def unpack_tangents(self, packed: Any) -> Tangents | None:
        if packed is None:
            return None
        return Tangents({name: tuple(Iterate.unpack(row) for row in rows) for name, rows in packed.items()})

    def propagate(self, update: Trajectory, tangents: Tangents | None) -> Tangents:
        self.require_size(update.name, 0, sum(t.numel() for vector in update.lam.values() for t in vector))
        if tangents is None:
            tangents = _start(update)
        elif update.start(update.lam_at(0)) is not None:
            raise ConfigError(
                f"{update.name}.initial_parameters starts its inner loops anew, and tangents are kept from one to the "
                "next",
                where=f"problems.{update.name}.hypergradient.kept",
                seen=f"kept: {self.kept}",
                fix=f"{update.name}.hypergradient=forward, whose tangents begin anew with every inner loop",
            )
        try:
            return push(update, tangents)
        except derivatives.Unsupported as error:
            if not derivatives.is_missing(error):
                raise
            raise _wrong_kernel(update.name, str(error).splitlines()[0][:120]) from error


def _wrong_kernel(name: str, fault: str) -> GraphError:
    return GraphError(
        f"the loss of {name} goes through a kernel whose double backward is missing or wrong, which forward mode needs",
        where=f"problems.{name}.hypergradient",
        seen=f"double backward {fault}",
        fix=f"{name}.hypergradient=unrolled, which takes differences of gradients instead",
    )


def _share(row: Iterate, share: float) -> Iterate:
    """share times a row; zero where it is not finite."""
    finite = vectors.is_finite((*row.theta, *(t for entry in row.state for t in entry.values())))

    def part(t: Tensor) -> Tensor:
        return torch.where(finite, share * t, torch.zeros_like(t))

    return Iterate(
        tuple(map(part, row.theta)), tuple({key: part(t) for key, t in entry.items()} for entry in row.state)
    )


def push(update: Trajectory, tangents: Tangents) -> Tangents:
    """Z before an update to Z after it. One gradient graph; then, for each row, a product with H and a row of B."""
    at = update.recorded_iterate(0)
    lam = {name: tuple(t.requires_grad_() for t in vector) for name, vector in update.lam_at(0).items()}
    theta = vectors.leaves(at.theta)
    gradient = update.gradient(0, theta, lam, create_graph=True)
    read = [i for i, g in enumerate(gradient) if g is not None]
    slopes = tuple(g for g in gradient if g is not None)
    mixed = iter(derivatives.jacobian_rows(slopes, lam))
    learned = update.learned_options(update.lam)
    turned = iter(derivatives.jacobian_rows(tuple(learned.values()), update.lam))
    values = {key: value.detach() for key, value in learned.items()}
    pushed: dict[str, tuple[Iterate, ...]] = {}
    for name, rows in tangents.rows.items():
        after = []
        for row in rows:
            # H is symmetric: its product is a pull-back
            curved = derivatives.pull_back(slopes, theta, tuple(row.theta[i] for i in read), retain_graph=True)
            moved = vectors.add(tuple(curved[i] for i in read), next(mixed))
            change = dict(zip(read, moved, strict=True))
            after.append(
                _along(update, at, gradient, values, row, change, dict(zip(learned, next(turned), strict=True)))
            )
        pushed[name] = tuple(after)
    return Tangents(pushed)


def _start(update: Trajectory) -> Tangents:
    """Z of theta_0: zero, or the Jacobian of what upper problems decide."""
    at = update.recorded_iterate(0)
    start = update.start(update.lam)
    blank = tuple({k: torch.zeros_like(x) for k, x in state.items() if k not in COUNTERS} for state in at.state)
    size = sum(t.numel() for vector in update.lam.values() for t in vector)
    rows = iter(
        [vectors.zeros_like(at.theta)] * size if start is None else derivatives.jacobian_rows(start, update.lam)
    )
    return Tangents(
        {
            name: tuple(Iterate(next(rows), blank) for _ in range(sum(t.numel() for t in vector)))
            for name, vector in update.lam.items()
        }
    )


def _along(
    update: Trajectory,
    at: Iterate,
    gradient: tuple[Tensor | None, ...],
    learned: Mapping[str, Tensor],
    row: Iterate,
    change: Mapping[int, Tensor],
    turned: Mapping[str, Tensor],
) -> Iterate:
    """The directional derivative of the optimizer's step: along `row` in the iterate, `change` in the gradient by
    parameter, `turned` in the learned options."""
    counters = tuple({k: x for k, x in entry.items() if k in COUNTERS} for entry in at.state)
    keys = [(i, k) for i, entry in enumerate(at.state) for k in entry if k not in COUNTERS]
    read = [i for i, g in enumerate(gradient) if g is not None]
    # every input in one row: parameters, optimizer state, gradient, learned options
    point = [*at.theta, *(at.state[i][k] for i, k in keys), *(g for g in gradient if g is not None), *learned.values()]
    zeros = (torch.zeros_like(at.state[i][k]) for i, k in keys)
    state_row = [row.state[i].get(k, zero) for (i, k), zero in zip(keys, zeros, strict=True)]
    direction = [*row.theta, *state_row, *(change[i] for i in read), *(turned[key] for key in learned)]
    after_keys: list[list[str]] = []

    def step(inputs: Vector) -> list[Tensor]:
        rest = iter(inputs)
        theta = tuple(next(rest) for _ in at.theta)
        state = [dict(entry) for entry in counters]
        for i, k in keys:
            state[i][k] = next(rest)
        slopes = {i: next(rest) for i in read}
        options = {key: next(rest) for key in learned}
        after = update.apply(0, Iterate(theta, tuple(state)), [slopes.get(i) for i in range(len(gradient))], options)
        after_keys[:] = [[k for k in entry if k not in COUNTERS] for entry in after.state]
        return [*after.theta, *(entry[k] for entry, ks in zip(after.state, after_keys, strict=True) for k in ks)]

    tangents = iter(derivatives.push_forward(step, point, direction))
    theta = tuple(next(tangents) for _ in at.theta)
    return Iterate(theta, tuple({k: next(tangents) for k in ks} for ks in after_keys))
