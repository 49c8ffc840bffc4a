"""Is what estimators evaluate again what a step did? Its gradient, and who else wrote its parameters; named once."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mlorun.core.program.graph import ProblemGraph
from mlorun.core.program.problem import Problem
from mlorun.core.replay.views import Views
from mlorun.errors import ConfigError
from mlorun.hypergradient import derivatives, vectors
from mlorun.hypergradient.vectors import Vector

log = logging.getLogger("mlorun.core")

# relative: a gradient evaluated again against the one that a step took, also in low precision; below so much of the
# first one nobody looks
LARGEST_ERROR, LARGEST_ROUGH_ERROR = 0.05, 0.3
SOLVED = 1e-3


def changed_update(problem: Problem, hook: str) -> ConfigError:
    """An update is more than the optimizer's step on the loss's gradient, and is to be differentiated."""
    return ConfigError(
        f"{type(problem).__name__}.{hook} changes what an update does, so that it cannot be unrolled",
        where=f"problems.{problem.name}.hypergradient",
        seen=type(problem.hypergradient).__name__,
        fix=f"another hypergradient, e.g. {problem.name}.hypergradient=t1t2, or drop {hook}",
    )


class Watch:
    """Holds steps of problems that somebody differentiates through against their replay.

    remarks   what was found so far: sentences, by what they are about; each is logged once
    """

    def __init__(self, graph: ProblemGraph, views: Views) -> None:
        self.remarks: dict[str, str] = {}
        self._views = views
        estimates = {name: views.program.problems[name].hypergradient for name in graph.differentiated}
        # first_order evaluates nothing again
        self._watched = frozenset(name for name, e in estimates.items() if e and e.needs.answers != "constant")
        self._of_plain_steps = frozenset(name for name, e in estimates.items() if e and e.needs.plain_steps)
        # the gradient of a problem that steers others is more than its loss's
        self._of_loss_alone = frozenset(name for name in self._watched if not graph.nodes_on_paths(name))
        self._first: dict[str, float] = {}  # norm of the first gradient that was looked at
        self._stepped: dict[str, tuple[int, ...]] = {}  # versions of the parameters after the last optimizer step
        self._ended: dict[str, Vector] = {}  # and their values, where a param_callback must not write them
        self._kept: dict[str, Tensor] = {}  # whether it never has, (), on the device

    def see_gradient(self, problem: Problem, *, due: bool) -> None:
        """Before an optimizer step: evaluate the loss of its micro-batches again and compare gradients.

        due   look, whether or not it is the first time
        """
        name = problem.name
        if name not in self._of_loss_alone or (name in self._first and not due):
            return
        taken = vectors.filled([parameter.grad for parameter in problem.theta], problem.theta)
        if problem.update.scaler is not None:
            taken = vectors.scale(taken, 1 / problem.update.scaler.get_scale())
        leaves = vectors.leaves(problem.theta)
        loss = self._views.loss(name, self._views.history(name).last, {name: leaves})
        again = derivatives.gradient(loss, leaves)
        size = max(vectors.norm(taken).item(), vectors.norm(again).item())
        if not math.isfinite(size):
            return
        off = vectors.norm(vectors.add(taken, again, alpha=-1.0)).item()
        # where a problem is solved, little is left of a gradient but rounding
        largest = LARGEST_ROUGH_ERROR if self._views.history(name).rough else LARGEST_ERROR
        if size > SOLVED * self._first.setdefault(name, size) and off > largest * size:
            # drawn from them, perhaps, for the first time
            self._views.program.keep_host_generators()
            self._say(
                f"gradient of {name}",
                f"{name}: the gradient of its loss, evaluated again, is {100 * off / size:.2g} % off the gradient that "
                "its step took, and hypergradients through it are about as far off. Causes: a hook on a parameter or a "
                "grad_callback that changes gradients; random numbers of a generator of its own; a batch that is "
                "changed in place; a lower optimum that moved between micro-batches; low precision",
            )

    def at_start(self, problem: Problem, versions: Sequence[int]) -> None:
        """After `on_inner_loop_start` of a problem with roll_back; `versions` of its parameters before."""
        if vectors.versions(problem.theta) != tuple(versions):
            self._say(
                f"start of {problem.name}",
                f"{problem.name}: {type(problem).__name__}.on_inner_loop_start writes its parameters, and roll_back "
                "repeats an inner loop from there without calling it again: a start that upper problems decide belongs "
                "into initial_parameters",
            )

    def after_step(self, problem: Problem) -> None:
        """Right after an optimizer step, before `param_callback`."""
        name = problem.name
        if name in self._watched:
            self._stepped[name] = vectors.versions(problem.theta)
        if name in self._of_plain_steps and type(problem).param_callback is not Problem.param_callback:
            self._ended[name] = vectors.copy(problem.theta)

    def after_callback(self, problem: Problem, *, due: bool) -> None:
        """Right after `param_callback`. Raises ConfigError where it wrote what updates that are differentiated gave.

        due   look at values too, which a write through `.data` changes alone
        """
        name = problem.name
        if name in self._ended:
            same = torch.stack(
                [((a == b) | a.isnan()).all() for a, b in zip(self._ended.pop(name), problem.theta, strict=True)]
            ).all()
            first, before = name not in self._kept, self._kept.get(name)
            self._kept[name] = same if before is None else before & same
            written = vectors.versions(problem.theta) != self._stepped[name]
            if written or ((first or due) and not self._kept[name]):
                raise changed_update(problem, "param_callback")
        elif name in self._watched and vectors.versions(problem.theta) != self._stepped[name]:
            self._say(
                f"param_callback of {name}",
                f"{name}: {type(problem).__name__}.param_callback writes its parameters. Its hypergradient is "
                "that of the loss's own optimum, and is wrong where the callback moves it, as a projection does",
            )

    def before_tangents(self, problem: Problem) -> None:
        """Before an update whose tangents go on from those of the update before."""
        stepped = self._stepped.get(problem.name)
        if stepped is not None and vectors.versions(problem.theta) != stepped:
            self._say(
                f"tangents of {problem.name}",
                f"{problem.name}: its parameters were written between two updates of an inner loop (by a callback, or "
                "by another problem): its tangents do not know that, and its hypergradient is off",
            )

    def forget_steps(self) -> None:
        """Another state is put into the parameters: nobody wrote between two steps."""
        self._stepped.clear()

    def _say(self, about: str, text: str) -> None:
        if about not in self.remarks:
            self.remarks[about] = text
            log.warning(text)
