"""CartPole, many at a time: balance a pole on a cart by pushing it left or right (Barto, Sutton and Anderson 1983).

A state is (position, velocity, angle, angular velocity); every step gives a reward of 1 until the pole falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mlorun.run.seeds import derive_seed

GRAVITY, CART, POLE, HALF_LENGTH, FORCE, SECONDS = 9.8, 1.0, 0.1, 0.5, 10.0, 0.02
FAR, TILTED = 2.4, math.radians(12)  # beyond these the episode is over
Policy = Callable[[Tensor], Tensor]  # states (B, 4) to pushes (B,): 0 left, 1 right
# states (B, 4), pushes (B,), the states that they led to (B, 4), and whether those fell (B,)
Transitions = tuple[Tensor, Tensor, Tensor, Tensor]


class Carts(NamedTuple):
    """Where carts are, (N, 4), and how many steps their episodes have taken, (N,)."""

    states: Tensor
    ages: Tensor


def pushed(states: Tensor, pushes: Tensor) -> Tensor:
    """The states (B, 4) one Euler step later. Equations of the paper's appendix, without friction."""
    _, speed, angle, turn = states.unbind(1)
    force = FORCE * (2.0 * pushes - 1.0)
    sin, cos, mass = angle.sin(), angle.cos(), CART + POLE
    drive = (force + POLE * HALF_LENGTH * turn.square() * sin) / mass
    turning = (GRAVITY * sin - cos * drive) / (HALF_LENGTH * (4.0 / 3.0 - POLE * cos.square() / mass))
    speeding = drive - POLE * HALF_LENGTH * turning * cos / mass
    rates = torch.stack([speed, speeding, turn, turning], dim=1)
    return states + SECONDS * rates


def fallen(states: Tensor) -> Tensor:
    """Whether each of (B, 4) is out of bounds, (B,)."""
    return (states[:, 0].abs() > FAR) | (states[:, 2].abs() > TILTED)


def starts(count: int, generator: torch.Generator) -> Tensor:
    """So many states near the middle, (count, 4)."""
    return 0.1 * torch.rand(count, 4, generator=generator) - 0.05


def start_states(*, seed: int, selection: int, test: int) -> dict[str, Tensor]:
    """Splits of states that episodes of an evaluation start from."""
    sizes = {"selection": selection, "test": test}
    draws = {name: torch.Generator().manual_seed(derive_seed(seed, "cartpole", name)) for name in sizes}
    return {name: starts(size, draws[name]) for name, size in sizes.items()}


def rollout(
    carts: Carts, policy: Policy, *, steps: int, time_limit: int, generator: torch.Generator
) -> tuple[Transitions, Carts]:
    """So many steps of every cart, and where they are then. One that fell, or is at its time limit, starts anew."""
    parts = []
    for _ in range(steps):
        pushes = policy(carts.states)
        following = pushed(carts.states, pushes)
        fell, ages = fallen(following), carts.ages + 1
        parts.append((carts.states, pushes, following, fell))
        over = fell | (ages >= time_limit)
        fresh = starts(len(following), generator).to(following)
        carts = Carts(torch.where(over[:, None], fresh, following), ages.masked_fill(over, 0))
    states, pushes, following, fell = (torch.cat(column) for column in zip(*parts, strict=True))
    return (states, pushes, following, fell), carts


def returns(states: Tensor, policy: Policy, time_limit: int) -> Tensor:
    """How many steps episodes from these states last, (B,), at most `time_limit`."""
    standing = torch.ones(len(states), dtype=torch.bool, device=states.device)
    lasted = torch.zeros(len(states), device=states.device)
    for _ in range(time_limit):
        states = pushed(states, policy(states))
        lasted += standing
        standing &= ~fallen(states)
    return lasted
