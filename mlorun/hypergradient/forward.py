"""Forward mode: d theta_t / d lam carried along with training, for a few hyperparameters and loops of any length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from mlorun.errors import ConfigError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.level import ALL_BUT_DRAWS, Hypergradient, Level
from mlorun.hypergradient.solve import at_least
from mlorun.hypergradient.tangents import load_rules
from mlorun.hypergradient.trajectory import Iterate, Trajectory
from mlorun.hypergradient.unrolled import COUNTERS
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

    No history is kept. Equal to `unrolled` over the whole inner loop; lam acts through the losses, through
    `initial_parameters` and through `optimizer_options`.
    """

    sees = ALL_BUT_DRAWS
    follows = True

    def __init__(self, largest_size: int) -> None:
        at_least("largest_size", largest_size, 1)
        self.largest_size = largest_size

    def __call__(self, level: Level, v: Vector, carry: Any) -> tuple[dict[str, Vector], None]:
        tangents: Tangents = level.tangents
        return {
            name: vectors.shaped(torch.stack([vectors.dot(row.theta, v) for row in tangents.rows[name]]), like)
            for name, like in level.lam.items()
        }, None

    def require_size(self, name: str, theta: int, lam: int) -> None:
        if lam > self.largest_size:
            raise ConfigError(
                f"forward mode carries {lam} copies of {name}'s parameters, one a hyperparameter",
                where=f"problems.{name}.hypergradient.largest_size",
                seen=f"largest_size: {self.largest_size}",
                fix=f"{name}.hypergradient=unrolled, or raise largest_size",
            )

    def follow(self, update: Trajectory, tangents: Tangents | None) -> Tangents:
        self.require_size(update.name, 0, sum(t.numel() for vector in update.lam.values() for t in vector))
        return push(update, _start(update) if tangents is None else tangents)


def push(update: Trajectory, tangents: Tangents) -> Tangents:
    """Z before an update to Z after it. One gradient graph; then, for each row, a product with H and a row of B."""
    at = update.steps[0].iterate
    assert at is not None
    lam = {name: tuple(t.requires_grad_() for t in vector) for name, vector in update.lam_at(0).items()}
    theta = tuple(t.detach().requires_grad_() for t in at.theta)
    gradient = update.gradient(0, theta, lam, create_graph=True)
    read = [i for i, g in enumerate(gradient) if g is not None]
    slopes = tuple(g for g in gradient if g is not None)
    mixed = iter(jacobian(slopes, lam))
    learned = update.learned(update.lam)
    turned = iter(jacobian(tuple(learned.values()), update.lam))
    values = {key: value.detach() for key, value in learned.items()}
    found: dict[str, tuple[Iterate, ...]] = {}
    for name, rows in tangents.rows.items():
        after = []
        for row in rows:
            # H is symmetric: its product is a pull-back
            curved = _pull(slopes, theta, tuple(row.theta[i] for i in read))
            moved = vectors.add(tuple(curved[i] for i in read), next(mixed))
            change = dict(zip(read, moved, strict=True))
            after.append(
                _along(update, at, gradient, values, row, change, dict(zip(learned, next(turned), strict=True)))
            )
        found[name] = tuple(after)
    return Tangents(found)


def jacobian(outputs: Vector, lam: Mapping[str, Vector]) -> list[Vector]:
    """d outputs / d q for every scalar q of lam, each shaped as the outputs. A pull-back, differentiated Q times."""
    flat = tuple(t for vector in lam.values() for t in vector)
    zero = vectors.zeros_like(outputs)
    along = tuple(t.requires_grad_() for t in vectors.zeros_like(outputs))
    live = [(y, u) for y, u in zip(outputs, along, strict=True) if y.requires_grad]
    if not live:
        return [zero] * sum(t.numel() for t in flat)
    ys, us = zip(*live, strict=True)
    # linear in u, so that its derivative in u is the Jacobian
    pulled = torch.autograd.grad(ys, flat, us, create_graph=True, retain_graph=True, allow_unused=True)
    rows: list[Vector] = []
    for t, g in zip(flat, pulled, strict=True):
        if g is None or not g.requires_grad:
            rows.extend([zero] * t.numel())
            continue
        for entry in g.reshape(-1):
            rows.append(vectors.filled(torch.autograd.grad(entry, along, retain_graph=True, allow_unused=True), along))
    return rows


def _start(update: Trajectory) -> Tangents:
    """Z of theta_0: zero, or the Jacobian of what upper problems decide."""
    at = update.steps[0].iterate
    assert at is not None
    start = update.start(update.lam)
    blank = tuple({k: torch.zeros_like(x) for k, x in state.items() if k not in COUNTERS} for state in at.state)
    size = sum(t.numel() for vector in update.lam.values() for t in vector)
    rows = iter([vectors.zeros_like(at.theta)] * size if start is None else jacobian(start, update.lam))
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
    load_rules()
    with torch.no_grad(), forward_ad.dual_level():
        theta = tuple(_dual(t, dt) for t, dt in zip(at.theta, row.theta, strict=True))
        state = tuple(
            {k: x if k in COUNTERS else _dual(x, d.get(k, torch.zeros_like(x))) for k, x in entry.items()}
            for entry, d in zip(at.state, row.state, strict=True)
        )
        slopes = tuple(None if g is None else _dual(g, change[i]) for i, g in enumerate(gradient))
        options = {key: _dual(value, turned[key]) for key, value in learned.items()}
        after = update.apply(0, Iterate(theta, state), slopes, options)
        return Iterate(
            tuple(_tangent(t) for t in after.theta),
            tuple({k: _tangent(x) for k, x in entry.items() if k not in COUNTERS} for entry in after.state),
        )


def _dual(x: Tensor, along: Tensor) -> Tensor:
    dual: Tensor = forward_ad.make_dual(x.detach(), along)
    return dual


def _tangent(x: Tensor) -> Tensor:
    tangent = forward_ad.unpack_dual(x).tangent
    return torch.zeros_like(x) if tangent is None else tangent.clone()


def _pull(outputs: Vector, inputs: Vector, x: Vector) -> Vector:
    live = [(y, c) for y, c in zip(outputs, x, strict=True) if y.requires_grad]
    if not live:
        return vectors.zeros_like(inputs)
    ys, cs = zip(*live, strict=True)
    return vectors.filled(torch.autograd.grad(ys, inputs, cs, retain_graph=True, allow_unused=True), inputs)
