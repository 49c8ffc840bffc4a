"""The derivative of the solved program by its definition: every lower problem solved again beside the present point.

The upper parameters are moved by +-h along a few directions, the lower problems solved on from where they are, on the
micro-batches and random numbers of the point, and the upper loss evaluated there. First gradients of the losses alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mlorun.hypergradient import vectors
from mlorun.hypergradient.vectors import Vector
from mlorun.verify.autograd import gradient, leaves
from mlorun.verify.point import VerificationPoint
from mlorun.verify.solve import SMALL, Solution
from mlorun.verify.solved_program import SolvedProgram

DIRECTIONS = 4  # random ones, beside the hypergradient's own
STEP = 1e-4  # h, in units of norm(lam), or of 1 where that is shorter
NESTED_STEP = 1e-3  # the same where a loss of a solved problem stands in another loss
ROUNDINGS = 100  # of the upper loss in a quotient
STATIONARY = 1e-6  # of what a step changes at second order, below which a quotient is 0
KINK = 0.05  # of the largest quotient: above it the two sides of a quotient are at odds


@dataclass(frozen=True)
class Agreement:
    """Of two vectors, from what is known of them along some directions.

    error    relative distance
    length   of the one over that of the other; inf where the other is 0
    """

    cosine: float
    error: float
    length: float


@dataclass(frozen=True)
class Direction:
    """One derivative of the upper loss: what the hypergradient gives, and the quotient of the re-solved loss. The same
    for the indirect part alone, where the upper loss reads the upper parameters as they are."""

    name: str
    slope: float
    quotient: float
    indirect_slope: float
    indirect_quotient: float


@dataclass(frozen=True)
class Resolved:
    """What re-solving gave at one point.

    direct       the upper loss reads the upper parameters itself, so that `whole` and `indirect` are two things
    everywhere   the directions span the upper parameters, so that the agreement is that of whole vectors
    solutions    the first solve of each lower problem, at the present upper parameters
    worst        by problem, the largest gradient left by any solve over that problem's scale
    spent        problems of which some solve took the whole budget
    losses       by problem, its loss before and after its first solve
    kink         how far the two sides of the quotients are apart
    noise        up to where a quotient is 0
    """

    directions: tuple[Direction, ...]
    whole: Agreement
    indirect: Agreement
    direct: bool
    everywhere: bool
    solutions: Mapping[str, Solution]
    worst: Mapping[str, float]
    spent: frozenset[str]
    losses: Mapping[str, tuple[float, float]]
    kink: float
    noise: float
    notes: tuple[str, ...]

    @property
    def both_zero(self) -> bool:
        """Whether the indirect part is 0 to rounding, by the hypergradient and by the quotients."""
        return self.solved_is_zero and all(abs(row.indirect_slope) <= self.noise for row in self.directions)

    @property
    def solved_is_zero(self) -> bool:
        """Whether the quotients are 0 to rounding."""
        return all(abs(row.indirect_quotient) <= self.noise for row in self.directions)

    @property
    def solved(self) -> bool:
        return all(solution.solved for solution in self.solutions.values()) and not self.unsolved

    @property
    def unsolved(self) -> tuple[str, ...]:
        """Problems whose gradient is still not small."""
        return tuple(name for name, left in self.worst.items() if not left <= SMALL)


def resolve(point: VerificationPoint, indirect: Vector, *, implicit_is_zero: bool, budget: int) -> Resolved:
    """Hold the hypergradient, of which `indirect` is what comes through lower problems, against re-solving.

    Raises DoesNotApply.
    """
    program = SolvedProgram(point, budget)
    notes = program.checked(implicit_is_zero)
    upper, lam = point.upper, program.lam
    own = leaves(point.finest.theta(upper))
    loss = point.finest.upper_loss(upper)({upper: own})
    direct = vectors.flat(gradient(loss, own)).detach()
    through = vectors.flat(tuple(t.detach() for t in indirect)).to(direct)
    whole = direct + through

    named = _directions(whole)
    step = (NESTED_STEP if program.nests else STEP) * max(1.0, float(lam.norm()))
    base = program.solved(lam, program.start)
    middle = program.upper_loss(lam, base)
    rows, kinks = [], []
    for name, along in named:
        sides = [(lam + s * step * along) for s in (1, -1)]
        ends = [program.solved(side, base) for side in sides]
        ahead, behind = (program.upper_loss(side, end) for side, end in zip(sides, ends, strict=True))
        held = [program.upper_loss(lam, end) for end in ends]
        rows.append(
            Direction(
                name,
                float(whole @ along),
                (ahead - behind) / (2 * step),
                float(through @ along),
                (held[0] - held[1]) / (2 * step),
            )
        )
        kinks.append(abs(ahead + behind - 2 * middle) / (2 * step))
    matrix = torch.stack([along for _, along in named], dim=1)
    largest = max(abs(row.quotient) for row in rows)
    noise = max(ROUNDINGS * torch.finfo(lam.dtype).eps * abs(middle) / step, STATIONARY * max(kinks))
    return Resolved(
        tuple(rows),
        agreement(matrix, whole, [row.quotient for row in rows], own=bool(whole.norm() > 0)),
        agreement(matrix, through, [row.indirect_quotient for row in rows], own=bool(whole.norm() > 0)),
        bool(direct.norm() > 0),
        len(lam) <= len(named),
        program.first,
        program.worst,
        frozenset(program.spent),
        program.losses,
        max(kinks) / largest if largest and max(kinks) > noise else 0.0,
        noise,
        notes,
    )


def agreement(directions: Tensor, vector: Tensor, quotients: list[float], *, own: bool) -> Agreement:
    """Cosine and relative error of `vector`, (Q,), against one of which these derivatives along `directions`, (Q, K),
    are known. Where K < Q, what lies off the first direction (`own`) is estimated from the others, which are random."""
    basis, mix = torch.linalg.qr(directions)
    wanted = torch.linalg.solve_triangular(mix.T, directions.new_tensor(quotients)[:, None], upper=False)[:, 0]
    got = basis.T @ vector
    size, count = directions.shape
    weights = torch.ones_like(got)
    random = count - own
    if random and size > count:
        weights[int(own) :] = (size - own) / random

    def inner(a: Tensor, b: Tensor) -> float:
        return float((weights * a * b).sum())

    long, wide = inner(got, got) ** 0.5, inner(wanted, wanted) ** 0.5
    cosine = inner(got, wanted) / (long * wide) if long and wide else math.nan
    length = long / wide if wide else math.inf
    return Agreement(cosine, inner(got - wanted, got - wanted) ** 0.5 / (wide or 1.0), length)


def _directions(own: Tensor) -> list[tuple[str, Tensor]]:
    """The hypergradient's own direction, and random ones at right angles to each other; (Q,) each, of length 1."""
    size = len(own)
    length = float(own.norm())
    named = [("along itself", own / length)] if length else []
    count = min(DIRECTIONS, size - len(named))
    if count:
        draws = torch.Generator().manual_seed(0)
        random = torch.randn(size, count, generator=draws, dtype=torch.float64).to(own)
        basis = torch.linalg.qr(random).Q
        named += [(f"random {index + 1}", basis[:, index]) for index in range(count)]
    return named
