"""Every estimator on one point of a program, against the implicit function theorem there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from mlorun.errors import MlorunError
from mlorun.hypergradient import vectors
from mlorun.hypergradient.derivatives import Unsupported
from mlorun.hypergradient.estimator import Hypergradient
from mlorun.hypergradient.estimators.first_order import FirstOrder
from mlorun.hypergradient.sweep import total
from mlorun.verify.point import Cost, VerificationPoint, cosine, relative_error
from mlorun.verify.program import implicit_edges


@dataclass(frozen=True)
class Comparison:
    """One estimator on every lower problem of one point, against the implicit function theorem.

    solved    as for an edge
    refused   why there are no numbers
    """

    name: str
    error: float = math.nan
    cosine: float = math.nan
    norm: float = math.nan
    cost: Cost | None = None
    solved: bool = True
    refused: str = ""


def compare(
    point: VerificationPoint, make: Mapping[str, Callable[[], Mapping[str, Hypergradient]]]
) -> Iterator[Comparison]:
    """Every estimator on the same point, against the implicit function theorem's for the upper problem."""
    edges, solves, in_part = implicit_edges(point)
    solved = in_part is None and all(solve.reached for solve in solves.values())
    exact = total(edges, point.upper)
    for name, estimates in make.items():
        try:
            made = estimates()
            got = total(point.estimate(made, {}), point.upper)
            if got is None or exact is None:
                continue
            if not vectors.norm(got) and not any(isinstance(estimate, FirstOrder) for estimate in made.values()):
                yield Comparison(name, refused=f"zero, as it differentiates {_ways(made)} alone")
                continue
            yield Comparison(
                name,
                relative_error(got, exact) if vectors.norm(exact) else math.nan,
                cosine(got, exact),
                float(vectors.norm(got)),
                point.cost(made, {}),
                solved,
            )
        except MlorunError as error:
            yield Comparison(name, refused=error.message)
        except Unsupported as error:
            yield Comparison(name, refused=str(error).splitlines()[0])


def _ways(estimates: Mapping[str, Hypergradient]) -> str:
    return ", ".join(sorted({way for estimate in estimates.values() for way in estimate.needs.channels}))
