"""Dependencies to graph: edges, levels, what a hypergradient passes, and what is refused."""

from __future__ import annotations

import pytest

from mlorun.core.program.graph import ProblemGraph
from mlorun.errors import GraphError


def test_the_edge_that_is_not_given_is_the_reverse_of_the_other() -> None:
    from_u2l = ProblemGraph.build(["up", "low"], u2l={"up": ["low"]})
    from_l2u = ProblemGraph.build(["up", "low"], l2u={"low": ["up"]})
    assert from_u2l == from_l2u
    assert from_u2l.uppers == {"up": (), "low": ("up",)}
    assert from_u2l.u2l == {"up": ("low",), "low": ()}


def test_a_chain_has_three_levels_and_one_path() -> None:
    graph = ProblemGraph.build(["s", "fine", "pre"], {"s": ["pre"]}, {"pre": ["fine"], "fine": ["s"]})
    assert graph.levels() == (("pre",), ("fine",), ("s",))
    assert graph.order == ("pre", "fine", "s")
    assert graph.nodes_on_paths("s") == ("fine", "pre")
    assert graph.paths("s") == (("s", "pre", "fine"),)
    assert graph.leaves == ("pre",)


def test_a_diamond_passes_every_problem_once_and_has_two_paths() -> None:
    graph = ProblemGraph.build(
        ["base", "l", "r", "top"], {"top": ["base"]}, {"base": ["l", "r"], "l": ["top"], "r": ["top"]}
    )
    assert graph.nodes_on_paths("top") == ("r", "l", "base")
    assert set(graph.paths("top")) == {("top", "base", "l"), ("top", "base", "r")}


def test_a_problem_that_leads_nowhere_is_not_passed() -> None:
    graph = ProblemGraph.build(["up", "steered", "other"], {"up": ["steered"]}, {"steered": ["up"], "other": ["up"]})
    assert graph.nodes_on_paths("up") == ("steered",)
    assert graph.differentiated == {"steered"}


# top steers middle, middle steers low: who answers top, whom middle's optimum depends on, in which order top sweeps
NESTED = [
    ({"low": ["mid"], "mid": ["top"]}, {"top": ["mid"], "mid": ["low"]}, ("mid", "low"), ("top",), ("low", "mid")),
    (
        {"low": ["mid", "top"], "mid": ["top"]},
        {"top": ["mid"], "mid": ["low"]},
        ("mid", "low"),
        ("top",),
        ("low", "mid"),
    ),
    ({"low": ["mid"], "mid": ["top"]}, {"top": ["low"]}, ("mid", "low"), ("low",), ("mid", "low")),
    (
        {"base": ["low", "mid"], "low": ["mid"], "mid": ["top"]},
        {"top": ["base"], "mid": ["low"]},
        ("mid", "low", "base"),
        ("base",),
        ("low", "mid", "base"),
    ),
]


@pytest.mark.parametrize(("l2u", "u2l", "answers", "depends", "order"), NESTED)
def test_what_a_problem_steers_answers_it_and_is_swept_before_it(l2u, u2l, answers, depends, order) -> None:  # type: ignore[no-untyped-def]
    graph = ProblemGraph.build(["top", "mid", "low", "base"], u2l, l2u)
    assert graph.nodes_on_paths("top") == answers
    assert graph.outside("mid") == depends
    assert graph.sweep_order("top") == order


def test_paths_go_down_to_what_a_middle_problem_steers_and_up_again() -> None:
    u2l, l2u = {"top": ["mid"], "mid": ["low"]}, {"low": ["mid", "top"], "mid": ["top"]}
    graph = ProblemGraph.build(["top", "mid", "low"], u2l, l2u)
    assert set(graph.paths("top")) == {("top", "mid"), ("top", "mid", "low")}


def test_a_steered_problem_that_reaches_the_top_by_another_optimum_alone_steps_before_it() -> None:
    graph = ProblemGraph.build(["top", "mid", "low"], {"top": ["mid"], "mid": ["low"]}, {"low": ["mid", "top"]})
    assert graph.order == ("low", "mid", "top")
    assert graph.lowers["top"] == ("mid", "low")


def test_two_problems_that_answer_each_other_are_an_equilibrium_and_refused() -> None:
    u2l = {"top": ["one"], "one": ["low"], "two": ["low"]}
    l2u = {"low": ["one", "two"], "one": ["top"], "two": ["top"]}
    graph = ProblemGraph.build(["top", "one", "two", "low"], u2l, l2u)
    with pytest.raises(GraphError, match="two and one answer each other") as caught:
        graph.sweep_order("top")
    assert "two.hypergradient.nested=own_loss" in (caught.value.fix or "")
    assert graph.sweep_order("top", own_loss={"two"}) == ("low", "one", "two")


def test_problems_without_dependencies_are_all_leaves() -> None:
    graph = ProblemGraph.build(["a", "b"])
    assert graph.leaves == ("a", "b")
    assert graph.levels() == (("a", "b"),)
    assert not graph.differentiated


@pytest.mark.parametrize(
    ("u2l", "l2u", "words"),
    [
        ({"up": ["lwo"]}, None, "did you mean low"),
        (None, {"low": ["upp"]}, "did you mean up"),
        ({"up": ["up"]}, None, "depends on itself"),
        (None, {"low": ["up"], "up": ["low"]}, "cycle"),
        ({"low": ["up"]}, {"low": ["up"]}, "never reaches"),
    ],
)
def test_impossible_dependencies_are_refused_with_the_place_and_the_fix(u2l, l2u, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GraphError) as caught:
        ProblemGraph.build(["up", "low"], u2l, l2u)
    assert words in str(caught.value)
    assert caught.value.where is not None
    assert caught.value.where.startswith("dependencies.")
    assert caught.value.exit_code == 2


def test_no_problems_is_no_program() -> None:
    with pytest.raises(GraphError, match="no problems"):
        ProblemGraph.build([])


def test_an_empty_u2l_is_given_and_an_empty_l2u_is_not() -> None:
    game = ProblemGraph.build(["judge", "maker"], {}, {"judge": ["maker"]})
    assert game.order == ("judge", "maker") and game.differentiated == frozenset()
    bilevel = ProblemGraph.build(["up", "low"], {"up": ["low"]}, {})
    assert bilevel == ProblemGraph.build(["up", "low"], {"up": ["low"]})
    assert ProblemGraph.build(["low", "up"], None, {"low": ["up"]}).differentiated == {"low"}
