"""Dependencies to a problem graph: edges, order, who is differentiated through for whom. No torch.

Two kinds of edge, both named from the first to the second:

    l2u  lower -> upper    the upper loss reads the lower problem's optimum, and the upper steps after the lower
    u2l  upper -> lower    the lower loss reads the upper problem's parameters, and the upper differentiates
                           through the lower's optimum

The l2u edges form a directed acyclic graph; `lower` and `upper` below always mean its direct neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from mlorun.errors import GraphError, did_you_mean

Edges = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class ProblemGraph:
    """Problems and their dependencies. `lowers`, `uppers` and `u2l` have every name as a key."""

    names: tuple[str, ...]
    uppers: Edges  # l2u: who steps after me and reads my optimum
    lowers: Edges  # the reverse of `uppers`
    u2l: Edges  # whose losses read my parameters and are differentiated through for me
    order: tuple[str, ...]  # lowers before uppers; among equals, as declared

    @classmethod
    def build(
        cls,
        names: Sequence[str],
        u2l: Mapping[str, Sequence[str]] | None = None,
        l2u: Mapping[str, Sequence[str]] | None = None,
    ) -> ProblemGraph:
        """Check and complete the dependencies; the one that is not given is the other's reverse. An empty u2l counts
        as given: nobody differentiates through anybody.

        Raises GraphError: no problems, an unknown name, a cycle of l2u, or a u2l edge whose lower optimum never
        reaches the upper problem.
        """
        if not names:
            raise GraphError("there are no problems", where="problems", fix="declare at least one problem")
        given_down = _checked("dependencies.u2l", names, u2l or {})
        given_up = _checked("dependencies.l2u", names, l2u or {})
        steering = given_down if u2l is not None else _reverse(names, given_up)
        uppers = _reaching(given_up, steering) if l2u else _reverse(names, given_down)
        lowers = _reverse(names, uppers)
        graph = cls(tuple(names), uppers, lowers, steering, _order(names, uppers, lowers))
        graph._check_reach()
        return graph

    @property
    def leaves(self) -> tuple[str, ...]:
        """Problems with nothing below them: each steps once in every global step."""
        return tuple(name for name in self.names if not self.lowers[name])

    @property
    def differentiated(self) -> frozenset[str]:
        """Problems whose optimum somebody differentiates through: their steps are recorded for replay."""
        return frozenset(node for upper in self.names for node in self.nodes_on_paths(upper))

    def below(self, name: str) -> frozenset[str]:
        """Every problem with an l2u path to `name`."""
        return _climb(self.lowers, name)

    def reads(self, name: str) -> tuple[str, ...]:
        """Whose parameters the loss of `name` reads: lower optima, then the problems that steer it."""
        return (*self.lowers[name], *(upper for upper in self.names if name in self.u2l[upper]))

    def nodes_on_paths(self, upper: str) -> tuple[str, ...]:
        """The problems below `upper` whose optimum depends on its parameters, in reverse order of execution.

        A problem belongs if its loss reads `upper` (a u2l edge), or anything that belongs: a lower optimum, or a
        problem that steers it.
        """
        below = self.below(upper)
        passed = {upper}
        grown = True
        while grown:
            fresh = {node for node in below - passed if passed.intersection(self.reads(node))}
            grown = bool(fresh)
            passed |= fresh
        return tuple(node for node in reversed(self.order) if node in passed - {upper})

    def outside(self, name: str, *, own_loss: bool = False) -> tuple[str, ...]:
        """Whose parameters the optimum of `name` depends on, where the problems below that answer `name` have
        answered: what its loss and theirs read, but for themselves.

        own_loss   by its own loss alone
        """
        inside = {name, *self.nodes_on_paths(name)}
        readers = (name,) if own_loss else tuple(node for node in self.names if node in inside)
        return tuple(dict.fromkeys(read for node in readers for read in self.reads(node) if read not in inside))

    def sweep_order(self, upper: str, own_loss: Set[str] = frozenset()) -> tuple[str, ...]:
        """`nodes_on_paths`, each after every problem whose optimum depends on it; else in that order.

        own_loss   problems that are differentiated by their own loss alone

        Raises GraphError where two problems answer each other: an equilibrium, which no order solves.
        """
        waiting = list(self.nodes_on_paths(upper))
        depends = {node: set(self.outside(node, own_loss=node in own_loss)) for node in waiting}
        done: list[str] = []
        while waiting:
            ready = next((n for n in waiting if not any(n in depends[other] for other in waiting)), None)
            if ready is None:
                circle = self._circle(waiting, depends)
                raise GraphError(
                    f"{' and '.join(circle)} answer each other, and {upper} differentiates through them: their "
                    "optima are an equilibrium, which is not differentiated",
                    where="dependencies",
                    seen=" -> ".join((*circle, circle[0])),
                    fix=f"merge them into one problem, or {circle[0]}.hypergradient.nested=own_loss, which takes the "
                    "second derivatives of its own loss alone",
                )
            waiting.remove(ready)
            done.append(ready)
        return tuple(done)

    @staticmethod
    def _circle(nodes: Sequence[str], depends: Mapping[str, Set[str]]) -> list[str]:
        walk = [nodes[0]]
        while True:
            step = next(other for other in nodes if walk[-1] in depends[other])
            if step in walk:
                return walk[walk.index(step) :]
            walk.append(step)

    def read_by(self, name: str) -> tuple[str, ...]:
        """The problems that somebody differentiates in through `name`: lower optima that its loss reads, and uppers."""
        uppers = [upper for upper in self.names if name in self.nodes_on_paths(upper)]
        lowers = [low for low in self.lowers[name] if any(low in self.nodes_on_paths(upper) for upper in uppers)]
        return (*lowers, *(upper for upper in uppers if name in self.u2l[upper]))

    def levels(self) -> tuple[tuple[str, ...], ...]:
        """Problems by height, leaves first: a problem lies one above the highest problem below it."""
        height: dict[str, int] = {}
        for node in self.order:
            height[node] = 1 + max((height[low] for low in self.lowers[node]), default=-1)
        return tuple(
            tuple(node for node in self.names if height[node] == level) for level in range(max(height.values()) + 1)
        )

    def paths(self, upper: str) -> tuple[tuple[str, ...], ...]:
        """Every path upper -> steered problem -> ... -> a problem whose optimum `upper` reads. For display.

        A path goes up to a problem that reads a lower optimum, and down to one that the problem steers.
        """
        below = self.below(upper)

        def climb(node: str) -> list[tuple[str, ...]]:
            routes: list[tuple[str, ...]] = [(node,)] if upper in self.uppers[node] else []
            for other in self.names:
                if other in below and node in self.outside(other, own_loss=True):
                    routes.extend((node, *rest) for rest in climb(other))
            return routes

        return tuple((upper, *path) for start in self.u2l[upper] for path in climb(start))

    def _check_reach(self) -> None:
        for upper in self.names:
            below = self.below(upper)
            for lower in self.u2l[upper]:
                if lower not in below:
                    raise GraphError(
                        f"{upper} differentiates through {lower}, but no path of l2u edges leads from {lower} "
                        f"to {upper}: its optimum never reaches {upper}'s loss",
                        where=f"dependencies.u2l.{upper}",
                        seen=f"l2u paths from {lower}: " + (", ".join(sorted(self._above(lower))) or "none"),
                        fix=f"add {upper} (or a problem that {upper} reads) to dependencies.l2u.{lower}, "
                        "or drop the u2l edge",
                    )

    def _above(self, name: str) -> set[str]:
        return {node for node in self.names if name in self.below(node)}


def _checked(where: str, names: Sequence[str], edges: Mapping[str, Sequence[str]]) -> Edges:
    known = set(names)
    complete: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    for first, seconds in edges.items():
        if isinstance(seconds, str) or not all(isinstance(name, str) for name in seconds):
            seen = f"{first}: {seconds}"
            raise GraphError("dependencies map a problem to a list of problems", where=where, seen=seen)
        for name in (first, *seconds):
            if name not in known:
                raise GraphError(
                    f"dependencies name a problem that does not exist: {name}",
                    where=where if name == first else f"{where}.{first}",
                    seen=f"{first}: [{', '.join(map(str, seconds))}]",
                    fix=did_you_mean(name, known),
                )
            if name == first and name in seconds:
                raise GraphError(f"{name} depends on itself", where=f"{where}.{name}", fix="drop that edge")
        complete[first] = tuple(dict.fromkeys(seconds))
    return complete


def _reverse(names: Sequence[str], edges: Edges) -> Edges:
    return {name: tuple(first for first in names if name in edges[first]) for name in names}


def _reaching(uppers: Edges, steering: Edges) -> Edges:
    """`uppers`, and an edge from every steered problem to who steers it, where its optimum reaches that one only by
    way of problems that it steers itself: it steps before, too."""
    complete = dict(uppers)
    for upper, lowers in steering.items():
        for lower in lowers:
            if upper not in _climb(complete, lower) and any(
                upper in _climb(complete, low) for low in _climb(steering, lower)
            ):
                complete[lower] = (*complete[lower], upper)
    return complete


def _climb(edges: Edges, start: str) -> frozenset[str]:
    """Whatever the edges lead to from `start`."""
    reached: set[str] = set()
    stack = list(edges[start])
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack.extend(edges[node])
    return frozenset(reached)


def _order(names: Sequence[str], uppers: Edges, lowers: Edges) -> tuple[str, ...]:
    """Lowers before uppers; stable: among problems that are ready together, the one declared first."""
    try:
        TopologicalSorter(lowers).prepare()
    except CycleError as error:
        cycle = list(error.args[1])
        raise GraphError(
            "the dependencies form a cycle: a problem would have to step after itself",
            where="dependencies.l2u",
            seen=" -> ".join(cycle),
            fix="drop one of these edges, or merge two of these problems into one",
        ) from None
    done: list[str] = []
    while len(done) < len(names):
        done.append(next(n for n in names if n not in done and all(low in done for low in lowers[n])))
    return tuple(done)
