"""Solve one problem on from a point by its gradient alone: L-BFGS whose line search looks at slopes, not at values.

A loss with a stop-gradient is not what its updates descend, so that its value says nothing: where the gradient is 0
is where the updates rest. No random numbers, no second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

AIM = 1e-12  # stop at this gradient, relative to the problem's scale
SMALL = 1e-8  # up to here a problem counts as solved
MEMORY = 30  # pairs that L-BFGS keeps
SLOPE = 0.5  # a step is taken once the slope along it has fallen to this part
TRIES = 25  # of one line search
LONGEST = 0.5  # of the parameters: a line search goes no farther, so that it does not land on some plateau
PATIENCE = 40  # gradients without progress before it stops

Gradient = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """Where the solve ended.

    theta           (P,)
    before, after   norms of the gradient
    scale           what the gradient changes by when the parameters change by their own length
    gradients       that it took
    """

    theta: Tensor
    before: float
    after: float
    scale: float
    gradients: int

    @property
    def solved(self) -> bool:
        return self.after <= SMALL * self.scale


def solve(gradient: Gradient, start: Tensor, budget: int, scale: float | None = None) -> Solution:
    """From `start`, (P,), with at most `budget` gradients; `scale` of an earlier solve of the same problem."""
    search = _Search(gradient, start, budget)
    before = float(search.g.norm())
    if scale is None:
        length = float(start.norm())
        probe = start * 0.1 if length else -0.1 * search.g / (before or 1.0)
        scale = max(before, 10 * float((search.evaluate(start + probe) - search.g).norm()))
    search.run(AIM * scale)
    return Solution(search.best, before, search.best_norm, scale, search.count)


class _Search:
    def __init__(self, gradient: Gradient, start: Tensor, budget: int) -> None:
        self._gradient = gradient
        self._budget = budget
        self.count = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self.x = self.best = start
        self.g = self.evaluate(start)
        self.best_norm = float(self.g.norm())
        self._stale = 0

    def evaluate(self, x: Tensor) -> Tensor:
        self.count += 1
        return self._gradient(x)

    def run(self, tolerance: float) -> None:
        """Until the gradient is below `tolerance`, the budget is spent, or rounding allows no progress."""
        while self.best_norm > tolerance and self.count < self._budget and self._stale < PATIENCE:
            direction = -self._inverse(self.g)
            slope = float(direction @ self.g)
            if not slope < 0:
                self._pairs.clear()
                direction, slope = -self.g, -float(self.g @ self.g)
            if not self._line_search(direction, slope):
                if not self._pairs:
                    return
                self._pairs.clear()

    def _inverse(self, g: Tensor) -> Tensor:
        """About H^-1 g, by the two loops over the kept pairs."""
        q = g.clone()
        parts = []
        for s, y in reversed(self._pairs):
            part = (s @ q) / (s @ y)
            q -= part * y
            parts.append(part)
        if self._pairs:
            s, y = self._pairs[-1]
            q *= (s @ y) / (y @ y)
        else:
            q *= 0.01 * max(1.0, float(self.x.norm())) / (float(g.norm()) or 1.0)  # a short first step
        for (s, y), part in zip(self._pairs, reversed(parts), strict=True):
            q += (part - (y @ q) / (s @ y)) * s
        return q

    def _line_search(self, direction: Tensor, slope: float) -> bool:
        """Step to where the slope along `direction` is small; False where there is no such place."""
        low, low_slope, high, high_slope = 0.0, slope, None, 0.0
        farthest = LONGEST * max(1.0, float(self.x.norm())) / (float(direction.norm()) or 1.0)
        length = min(1.0, farthest)
        for _ in range(TRIES):
            if self.count >= self._budget:
                return True
            x = self.x + length * direction
            g = self.evaluate(x)
            here = float(g @ direction)
            finite = bool(torch.isfinite(g).all())
            if finite and (abs(here) <= SLOPE * abs(slope) or (here < 0 and length >= farthest)):
                self._step(x, g)
                return True
            if not finite:
                high, high_slope = length, float("inf")
            elif here > 0:
                high, high_slope = length, here
            else:
                low, low_slope = length, here
            if high is None:
                length = min(3.0 * length, farthest)
            elif high_slope == float("inf"):
                length = (low + high) / 2
            else:
                part = -low_slope / (high_slope - low_slope)
                length = low + min(0.9, max(0.1, part)) * (high - low)
        return False

    def _step(self, x: Tensor, g: Tensor) -> None:
        s, y = x - self.x, g - self.g
        if float(s @ y) > 1e-12 * float(s.norm() * y.norm()):
            self._pairs = [*self._pairs[1 - MEMORY :], (s, y)]
        self.x, self.g = x, g
        norm = float(g.norm())
        if norm < 0.99 * self.best_norm:
            self._stale = 0
        else:
            self._stale += 1
        if norm < self.best_norm:
            self.best, self.best_norm = x, norm
