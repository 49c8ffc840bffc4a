"""Unrolled differentiation: reverse mode through the updates of the inner loop, all of them or the last K."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.checks import at_least, one_of
from mlorun.hypergradient.crosses.choice import needs_differences
from mlorun.hypergradient.estimator import ALL_BUT_DRAWS, Hypergradient, Needs
from mlorun.hypergradient.inner_loop import COUNTERS, Checkpointing, Iterate, LearnedOptions, State
from mlorun.hypergradient.level import Level
from mlorun.hypergradient.solvers.solve_watch import SolveWatch
from mlorun.hypergradient.stop_gradients import StopGradients
from mlorun.hypergradient.trajectory import Trajectory
from mlorun.hypergradient.vectors import Vector

# of an update that is computed again, in units of its length; and of rounding, in units of the parameters and eps
LARGEST_UPDATE_ERROR = 0.05
ROUNDING = 10.0


class Unrolled(Hypergradient):
    """(d theta_T / d lam)^T v through theta_{t+1} = Phi_t(theta_t, lam) (Maclaurin et al. 2015, arXiv:1502.03492;
    Franceschi et al. 2017, arXiv:1703.01785; MAML, arXiv:1703.03400). With p_T = v, for t = T - 1, ..., 0:

        g += (d Phi_t / d lam)^T p_{t+1},    p_t = (d Phi_t / d theta_t)^T p_{t+1}

    over parameters and optimizer state together; at t = 0, g += (d theta_0 / d lam)^T p_0 where an upper problem
    decides the start.

    steps    differentiate the last K updates of the inner loop (Shaban et al. 2019, arXiv:1810.10667); None is all
    memory   "iterates" keeps parameters and optimizer state before every update; "sqrt" before every sqrt(T)-th, and
             computes those between again, at one gradient more an update; "constant" before the first alone, at T / 2
             gradients more an update

    lam acts through the losses, through `initial_parameters` and through `optimizer_options`. Micro-batches, clipping
    and schedules are differentiated as they happened; the graph of one update is alive at a time. Optimizers: those of
    core/program/pure_steps.py. A lower optimum that moves during the inner loop is read at the value that each update
    saw, and the derivatives in all these values are summed.
    """

    def __init__(self, steps: int | None, memory: Literal["iterates", "sqrt", "constant"]) -> None:
        if steps is not None:
            at_least("steps", steps, 1)
        one_of("memory", memory, ("iterates", "sqrt", "constant"))
        self.steps = steps
        self.needs = Needs(channels=ALL_BUT_DRAWS, inner_loop=Checkpointing(steps, memory))
        self._store_segments = memory != "constant"
        self._watch = update_watch()

    def __call__(self, level: Level, v: Vector, carry: bool | None) -> tuple[dict[str, Vector], bool]:
        differences = needs_differences(level, v) if carry is None else carry
        total, off = reverse(level.trajectory, v, store_segments=self._store_segments, differences=differences)
        if not level.trajectory.rough:
            self._watch.look(level, off)
        return total, differences

    def in_use(self, carry: Any) -> str:
        return type(self).__name__ + by_differences(carry)


def by_differences(carry: Any) -> str:
    """What to say of an estimator that pulls back by differences, or does not."""
    return ", second derivatives by differences of gradients" if carry else ""


def update_watch() -> SolveWatch:
    """A watch on updates that are computed again: whether they lead where the recorded ones did."""
    return SolveWatch(
        "an update of its inner loop, computed again from what was recorded, ends elsewhere than it did, and the "
        "hypergradient is about as far off",
        "Causes: parameters that are written between updates (by a callback, or by another problem); a frozen "
        "parameter or a tensor that changes during the inner loop; a hook of the optimizer; low precision.",
        bound=LARGEST_UPDATE_ERROR,
    )


def distance(again: Vector, there: Vector, *, since: Vector) -> Tensor:
    """norm(again - there) / norm(again - since), (), beyond rounding."""
    # float32 at most: of a reference in float64, whose record is in the parameters' own precision
    eps = max(torch.finfo(torch.float32).eps, *(torch.finfo(t.dtype).eps for t in there))
    rounding = ROUNDING * eps * vectors.norm(there)
    length = vectors.norm(vectors.add(again, since, alpha=-1.0)) + rounding
    off = (vectors.norm(vectors.add(again, there, alpha=-1.0)) - rounding).clamp_min(0)
    return vectors.quotient(off, length, length > 0)


def reverse(
    trajectory: Trajectory, v: Vector, *, store_segments: bool, differences: bool = False
) -> tuple[dict[str, Vector], Tensor]:
    """(d theta_T / d lam)^T v, by lam; and how far the updates, computed again, end from the recorded ones, at worst,
    () in units of an update.

    store_segments   hold all iterates between two recorded ones at once, rather than compute each again from the first
    differences      second derivatives by differences of gradients
    """
    total = {name: vectors.zeros_like(x) for name, x in trajectory.lam.items()}
    learned = {k: x.detach().requires_grad_() for k, x in trajectory.learned_options(trajectory.lam).items()}
    on_learned = {k: torch.zeros_like(x) for k, x in learned.items()}
    p = Iterate(v, tuple({} for _ in v))
    following = trajectory.end
    off: list[Tensor] = [torch.zeros_like(vectors.norm(v))]
    for start, stop in reversed(trajectory.segments()):
        iterates = trajectory.iterates(start, stop) if store_segments else []
        for t in reversed(range(max(start, trajectory.first), stop)):
            at = iterates.pop() if store_segments else trajectory.iterate(t)
            pull_back = Pullback(trajectory, t, at, learned, differences=differences)
            if t == stop - 1:  # what follows was recorded
                off.append(pull_back.distance(following))
            p, on_lam, on_options = pull_back(p)
            total = added(total, on_lam)
            on_learned = {k: x + on_options[k] for k, x in on_learned.items()}
        following = trajectory.recorded_iterate(start).theta
    total = decided(trajectory, total, on_learned)
    origin = trajectory.start(trajectory.lam) if trajectory.first == 0 else None
    if origin is not None:
        total = added(total, through(origin, trajectory.lam, p.theta))
    return total, torch.stack(off).max()


class Pullback:
    """The transposed derivative of update t at one iterate, for any number of cotangents. One gradient, built once.

    differences   for kernels whose double backward is missing or wrong: the optimizer's step is pulled back from its
                  gradient g on, and with c the cotangent of g, H c and B c together are a central difference of the
                  first gradient in theta and lam, along c in theta (H is symmetric). Stop-gradients are held.
    """

    def __init__(
        self, trajectory: Trajectory, t: int, at: Iterate, learned: LearnedOptions, *, differences: bool = False
    ) -> None:
        self._lam = {name: tuple(x.requires_grad_() for x in part) for name, part in trajectory.lam_at(t).items()}
        self._learned = learned
        self._theta = vectors.leaves(at.theta)
        self._state = tuple(
            {k: x.detach() if k in COUNTERS else x.detach().requires_grad_() for k, x in entry.items()}
            for entry in at.state
        )
        self._loss: Callable[[Vector], Tensor] = lambda theta: trajectory.loss(t, theta, self._lam)
        gradient = trajectory.gradient(t, self._theta, self._lam, create_graph=not differences)
        self._stops = StopGradients(lambda: self._loss(self._theta)) if differences else None
        if differences:
            gradient = tuple(None if g is None else g.detach().requires_grad_() for g in gradient)
        self._gradient = gradient
        with torch.enable_grad():
            self._after = trajectory.apply(t, Iterate(self._theta, self._state), gradient, learned)

    def __call__(
        self, p: Iterate, *, retain_graph: bool = False
    ) -> tuple[Iterate, dict[str, Vector], dict[str, Tensor]]:
        """p^T dPhi_t: cotangents of the iterate, of lam, and of the learned options.

        retain_graph   for another call
        """
        outputs, cotangents = [*self._after.theta], [*p.theta]
        for entry, wanted in zip(self._after.state, p.state, strict=True):
            for key, c in wanted.items():
                outputs.append(entry[key])
                cotangents.append(c)
        places = [(i, k, x) for i, entry in enumerate(self._state) for k, x in entry.items() if k not in COUNTERS]
        flat_lam = [x for part in self._lam.values() for x in part]
        slopes = [] if self._stops is None else [g for g in self._gradient if g is not None]
        inputs = [*self._theta, *(x for _, _, x in places), *self._learned.values(), *slopes, *flat_lam]
        grads = iter(derivatives.pull_back(outputs, inputs, cotangents, retain_graph=retain_graph))
        on_theta = tuple(next(grads) for _ in self._theta)
        on_state: list[State] = [{} for _ in self._theta]
        for i, key, _ in places:
            on_state[i][key] = next(grads)
        on_learned = {key: next(grads) for key in self._learned}
        if self._stops is not None:
            along = tuple(
                torch.zeros_like(x) if g is None else next(grads)
                for x, g in zip(self._theta, self._gradient, strict=True)
            )
            on_theta, on_lam = self._through_gradient(self._stops, along, on_theta)
        else:
            on_lam = vectors.split(tuple(grads), self._lam)
        return Iterate(on_theta, tuple(on_state)), on_lam, on_learned

    def distance(self, following: Vector) -> Tensor:
        """How far the update ends from `following`, (), in units of its own length, beyond rounding."""
        return distance(vectors.detach(self._after.theta), following, since=vectors.detach(self._theta))

    def _through_gradient(
        self, stops: StopGradients, along: Vector, on_theta: Vector
    ) -> tuple[Vector, dict[str, Vector]]:
        """on_theta + H along, and B along by lam."""
        flat_lam = [x for part in self._lam.values() for x in part]

        def slopes(theta: Vector) -> Vector:
            leaves = vectors.leaves(theta)
            with stops.held():
                loss = self._loss(leaves)
            return derivatives.gradient(loss, [*leaves, *flat_lam])

        theta = vectors.detach(self._theta)
        changed = derivatives.central_difference(slopes, theta, along, derivatives.difference_radius(theta))
        count = len(theta)
        return vectors.add(on_theta, changed[:count]), vectors.split(changed[count:], self._lam)


def decided(trajectory: Trajectory, total: dict[str, Vector], on_learned: Mapping[str, Tensor]) -> dict[str, Vector]:
    """`total`, and what comes by the learned options, whose cotangents are given."""
    learned = trajectory.learned_options(trajectory.lam)
    if not learned:
        return total
    return added(total, through(tuple(learned.values()), trajectory.lam, [on_learned[key] for key in learned]))


def added(x: Mapping[str, Vector], y: Mapping[str, Vector]) -> dict[str, Vector]:
    """The sum, lam by lam."""
    return {name: vectors.add(part, y[name]) for name, part in x.items()}


def through(outputs: Sequence[Tensor], lam: Mapping[str, Vector], cotangents: Sequence[Tensor]) -> dict[str, Vector]:
    """cotangents^T d outputs / d lam, by lam."""
    flat = [x for vector in lam.values() for x in vector]
    return vectors.split(derivatives.pull_back(outputs, flat, cotangents), lam)
