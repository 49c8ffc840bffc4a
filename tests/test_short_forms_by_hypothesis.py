"""Short forms of overrides, whatever is typed: written out one for one, once, and Hydra's own left alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mlorun.config.compose import session
from mlorun.config.locations import groups, options
from mlorun.config.schema import PLACED_GROUPS, Config
from mlorun.config.shorthand import expand

EXPERIMENT = "experiment=mwn_digits"
PROBLEMS = ("classifier", "reweight")
OWN_KEYS = tuple(field.name for field in fields(Config))

words = st.from_regex(r"[a-z][a-z0-9_]{0,6}", fullmatch=True)
numbers = st.one_of(st.integers(-1000, 1000), st.floats(allow_nan=False, allow_infinity=False)).map(repr)
scalars = st.one_of(
    words, numbers, st.sampled_from(["null", "true", "'a, b'", '"x=y"', "${seed}", "a.b.C", "dir/file"])
)
values = st.one_of(
    scalars,
    st.lists(scalars, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    st.lists(scalars, min_size=2, max_size=3).map(",".join),  # a sweep
    st.sampled_from(["choice(1,2)", "range(1,4)", "interval(0,1)", "{a:1}", "{}", ""]),
)
keys = st.lists(words, min_size=1, max_size=3).map(".".join).filter(lambda key: key not in PLACED_GROUPS)
signs = st.sampled_from(["", "+", "++"])
problems = st.sampled_from(PROBLEMS)

# every one is an argument that a command may have, and what it is written out as
short_keys = st.builds(
    lambda sign, problem, key, value: (f"{sign}{problem}.{key}={value}", f"{sign}problems.{problem}.{key}={value}"),
    signs,
    problems,
    keys,
    values,
)
deleted_keys = st.builds(
    lambda problem, key: (f"~{problem}.{key}", f"~problems.{problem}.{key}"),
    problems,
    keys,
)
# mwn_digits chooses from all of these groups for classifier, so none needs a plus; an option that is not there would
# make the experiment one that cannot be composed
choices = st.sampled_from([(group, option) for group in PLACED_GROUPS for option in options(group)])
placed_groups = st.builds(
    lambda prefix, choice, more: (
        f"{prefix}classifier.{choice[0]}={choice[1]}{more}",
        f"{choice[0]}@problems.classifier.{choice[0]}={choice[1]}{more}",
    ),
    st.sampled_from(["", "problems."]),
    choices,
    st.lists(words, max_size=2).map(lambda options: "".join(f",{option}" for option in options)),
)
# a mapping in place of an option is a value
placed_values = st.builds(
    lambda prefix, group, value: (f"{prefix}classifier.{group}={value}", f"problems.classifier.{group}={value}"),
    st.sampled_from(["", "problems."]),
    st.sampled_from(PLACED_GROUPS),
    st.sampled_from(["{}", "{a:1}"]),
)
hydras_own = st.one_of(
    st.builds(lambda sign, key, value: f"{sign}{key}={value}", signs, st.sampled_from(OWN_KEYS), values),
    st.builds(
        lambda sign, first, key, value: f"{sign}{first}.{key}={value}",
        signs,
        st.sampled_from([*(key for key in OWN_KEYS if key != "problems"), "hydra", "hydra.run", "problems.classifier"]),
        keys,
        values,
    ),
    choices.map(lambda choice: "{0}@problems.classifier.{0}={1}".format(*choice)),
    st.builds(lambda group, option: f"hydra/{group}={option}", st.sampled_from(["launcher", "sweeper"]), words),
    st.builds("~{}".format, st.sampled_from([*OWN_KEYS, "hydra.sweep"])),
    st.sampled_from(["-m", "--multirun", "--info", "--cfg", "job", "-cd=my.folder", "--config-dir=some.folder"]),
    keys.map(lambda key: f"nobody.{key}=1"),  # no problem of this experiment; Hydra says that there is no such key
)
arguments = st.one_of(short_keys, deleted_keys, placed_groups, placed_values, hydras_own.map(lambda text: (text, text)))
# an example composes the experiment, a tenth of a second: few examples, of many arguments each, and none made smaller
few = settings(max_examples=8, phases=[Phase.generate])


@pytest.fixture(scope="module", autouse=True)
def _hydra(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("empty"))
        with session():
            yield


def safe(text: str) -> bool:
    """Whether the experiment can still be composed with this argument on the command line."""
    return text.partition("=")[0].lstrip("+~") not in groups()


@few
@given(st.lists(arguments.filter(lambda pair: safe(pair[0])), min_size=4, max_size=12))
def test_every_argument_is_written_out_by_itself_in_its_place(pairs: list[tuple[str, str]]) -> None:
    assert expand([EXPERIMENT, *(typed for typed, _ in pairs)]) == [EXPERIMENT, *(written for _, written in pairs)]


@few
@given(st.lists(st.one_of(arguments.map(lambda pair: pair[0]), st.text(max_size=12)), min_size=2, max_size=8))
def test_writing_out_twice_is_writing_out_once(typed: list[str]) -> None:
    once = expand([EXPERIMENT, *typed])
    assert len(once) == 1 + len(typed)
    assert expand(once) == once


@few
@given(st.lists(st.one_of(short_keys, deleted_keys, placed_groups, placed_values), min_size=4, max_size=12))
def test_for_hydra_the_kind_and_the_value_of_an_override_stay_the_same(pairs: list[tuple[str, str]]) -> None:
    typed = [text for text, _ in pairs]
    parser = OverridesParser.create()
    for before, after in zip(
        parser.parse_overrides(typed), parser.parse_overrides(expand([EXPERIMENT, *typed])[1:]), strict=True
    ):
        assert (before.type, before.value_type, before._value) == (after.type, after.value_type, after._value)


@few
@given(st.sampled_from([[], ["experiment=no_such_experiment"]]), st.lists(hydras_own, min_size=4, max_size=12))
def test_without_an_experiment_too_what_is_hydras_own_is_left_alone(chosen: list[str], typed: list[str]) -> None:
    own = [*chosen, *(text for text in typed if not text.startswith("nobody."))]
    assert expand(own) == own
