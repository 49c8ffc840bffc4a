"""What a class lacks, or has with other arguments, is said with the line to write."""

from __future__ import annotations

from typing import Any

import pytest

from mlorun import Callback, Problem
from mlorun.config.methods import faults
from mlorun.errors import ConfigError, said_once


class Right(Problem):
    def training_step(self, batch: Any, *, scale: float = 1.0) -> Any: ...

    def evaluation_end(self, *outputs: Any) -> Any: ...

    def own(self, one: int) -> None: ...


class Further(Right):
    def own(self) -> None: ...  # type: ignore[override]


class Otherwise(Problem):
    def train_step(self, batch: Any) -> Any: ...

    def evaluation_end(self) -> Any: ...  # type: ignore[override]


class Lacks(Problem): ...


class Listens(Callback):
    def on_report(self, metrics: Any) -> None: ...  # type: ignore[override]


def test_a_class_with_all_methods_has_no_fault() -> None:
    assert list(faults(Right, "here")) == []
    assert list(faults(Further, "here")) == []


@pytest.mark.parametrize(
    ("kind", "fixes"),
    [
        (Otherwise, ["train_step is to be called training_step", "def evaluation_end(self, outputs)"]),
        (Listens, ["def on_report(self, engine, metrics)"]),
        (Lacks, ["def training_step(self, batch): ..."]),
    ],
)
def test_what_is_missing_or_takes_other_arguments_is_named(kind: type, fixes: list[str]) -> None:
    assert [fault.fix for fault in faults(kind, "here")] == fixes


def test_faults_of_one_cause_are_said_once_with_all_their_places() -> None:
    def fault(where: str, message: str = "it does not import") -> ConfigError:
        return ConfigError(message, where=where, seen="SyntaxError", fix="correct it")

    once = said_once([fault("a"), fault("b"), fault("c", "another"), fault("a")])
    assert [one.where for one in once] == ["a, b", "c"]
