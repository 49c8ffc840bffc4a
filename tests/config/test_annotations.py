"""Whether plain values fit annotations, and what callables take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import pytest
import torch

from mlorun.config.annotations import arguments, fits


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (1, int), (1.5, float), (1, float), ("a", str), (True, bool), (None, None), (None, float | None),
        (2, float | torch.Tensor), ("lr", float | Literal["lr"]), ([1, 2], Sequence[int]), ([1, 2], Iterable[float]),
        ([0.9, 0.99], tuple[float, float]),
        ([1, 2, 3], tuple[int, ...]), ([], list[int]), ({"a": 1}, Mapping[str, int]), ("anything", Any),
        ("anything", Callable[[], int]), ([{"_target_": "x"}], list[int]),
    ],
)  # fmt: skip
def test_a_value_fits(value: object, annotation: Any) -> None:
    assert fits(value, annotation)


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        ("abc", float), ("1", int), (1.5, int), (True, int), (True, float), (1, bool), (1, str), (None, float),
        ("abc", float | torch.Tensor),
        ("cosine", Literal["cos", "linear"]), (3, Sequence[int]), ("ab", Sequence[str]), ([1, "b"], Iterable[int]),
        ([0.9], tuple[float, float]), ([1], Mapping[str, int]), ("relu", torch.nn.Module),
    ],
)  # fmt: skip
def test_a_value_does_not_fit(value: object, annotation: Any) -> None:
    assert not fits(value, annotation)


class Base:
    def __init__(self, *, width: int, depth: int = 1) -> None:
        pass


class Passing(Base):
    def __init__(self, color: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Plain:
    pass


def test_keywords_are_followed_up_the_bases() -> None:
    found = arguments(Passing)
    assert found is not None
    assert (list(found.parameters), found.required, found.open) == (
        ["color", "width", "depth"],
        ("color", "width"),
        False,
    )
    assert found.types["width"] is int


def test_a_class_without_a_constructor_takes_nothing() -> None:
    found = arguments(Plain)
    assert found is not None
    assert (dict(found.parameters), found.open) == ({}, False)


def test_a_function_with_keywords_takes_anything() -> None:
    def make(size: int, **kwargs: Any) -> None:
        pass

    found = arguments(make)
    assert found is not None
    assert found.open


def test_types_are_read_even_where_one_of_them_is_for_type_checkers_alone() -> None:
    # torch imports Iterable for type checkers only
    found = arguments(torch.optim.lr_scheduler.MultiStepLR)
    assert found is not None
    assert fits([1, 2], found.types["milestones"])
    assert not fits(["a"], found.types["milestones"])
