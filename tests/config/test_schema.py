"""The schema states a problem's keys once; what else knows them agrees."""

from __future__ import annotations

import inspect
from dataclasses import fields

from mlorun.config.schema import PLACED_GROUPS, PROBLEM_ARGUMENTS, PROBLEM_KEYS, REQUIRED_GROUPS, ProblemConfig
from mlorun.core.program.problem import Problem
from mlorun.core.program.schedule import UpdateSchedule


def test_a_problem_s_class_is_called_with_what_it_takes() -> None:
    assert set(PROBLEM_ARGUMENTS) == set(inspect.signature(Problem).parameters)


def test_an_update_schedule_is_made_of_keys_of_a_problem_with_the_same_defaults() -> None:
    defaults = {key.name: key.default for key in fields(ProblemConfig)}
    assert {key.name: key.default for key in fields(UpdateSchedule)} == {
        key.name: defaults[key.name] for key in fields(UpdateSchedule)
    }


def test_four_groups_are_placed_in_a_problem_and_two_of_them_are_needed() -> None:
    assert PLACED_GROUPS == ("module", "optimizer", "scheduler", "hypergradient")
    assert REQUIRED_GROUPS == ("module", "optimizer")
    assert {*PLACED_GROUPS, "optimizer_defaults", "batch_size"} <= {*PROBLEM_KEYS}
