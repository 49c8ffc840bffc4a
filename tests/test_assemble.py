"""From a checked config to objects."""

from __future__ import annotations

import pytest
import torch

import mlorun
from mlorun.assemble import make
from mlorun.config.places import Allowed
from mlorun.errors import ConfigError

pytestmark = pytest.mark.usefixtures("empty_folder")
SHORT = ["experiment=mwn_digits", "engine.train_iters=2"]


def test_an_empty_node_is_nothing_and_a_plain_value_is_itself() -> None:
    module = Allowed.at("module")
    assert make(None, "x", module) is None
    assert make({}, "x", module) is None
    assert make(3, "x", module) == 3
    linear = make({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1}, "x", module)
    assert linear.weight.shape == (1, 2)


def test_what_a_constructor_says_is_told_with_its_place_in_the_config() -> None:
    solve = {"_target_": "mlorun.hypergradient.solvers.neumann.Neumann", "terms": -1, "step_size": 0.1}
    with pytest.raises(ConfigError, match="terms must be at least 0") as caught:
        make(
            {"_target_": "mlorun.hypergradient.estimators.implicit.Implicit", "solve": solve},
            "problems.a.hypergradient",
            Allowed.at("hypergradient"),
        )
    assert caught.value.where == "problems.a.hypergradient.solve.terms"
    with pytest.raises(ConfigError) as caught:
        make(
            {"_target_": "torch.nn.Linear", "in_features": -1, "out_features": 2},
            "problems.a.module",
            Allowed.at("module"),
        )
    assert caught.value.where == "problems.a.module"


def test_adding_a_problem_leaves_the_initialization_of_the_others_as_it_was() -> None:
    more = [*SHORT, "+problem@problems.other=classifier", "other.module=mlp_digits"]
    alone, together = (mlorun.build(mlorun.compose(overrides)) for overrides in (SHORT, more))
    assert set(together.problems) == {*alone.problems, "other"}
    for name, problem in alone.problems.items():
        both = zip(problem.theta, together.problems[name].theta, strict=True)
        assert all(torch.equal(a, b) for a, b in both)


def test_problems_that_share_a_split_share_its_memory() -> None:
    engine = mlorun.build(mlorun.compose([*SHORT, "reweight.split=train", "classifier.evaluate_on=[train]"]))
    streams = [problem.stream for problem in engine.problems.values()]
    places = {stream.split[0].data_ptr() for stream in streams}  # type: ignore[union-attr]
    assert places == {engine.evaluations[0].split[0].data_ptr()}


def test_evaluations_on_one_split_by_two_problems_have_names_of_their_own() -> None:
    engine = mlorun.build(mlorun.compose([*SHORT, "reweight.evaluate_on=[test,balanced]"]))
    assert {one.prefix for one in engine.evaluations} == {"classifier/test", "reweight/test", "balanced"}
