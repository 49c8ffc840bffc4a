"""References of a config unfold to no more than a config can be."""

from __future__ import annotations

import time

import pytest
from omegaconf import OmegaConf

from mlorun.config.references import DEEPEST, MOST, bounded
from mlorun.errors import ConfigError


@pytest.mark.parametrize("link", ["['${%s}','${%s}']", "${%s}${%s}"], ids=["lists", "texts"])
def test_references_that_double_forty_times_are_refused_at_once(link: str) -> None:
    config = OmegaConf.create({"a0": "lol", **{f"a{n}": link % (f"a{n - 1}", f"a{n - 1}") for n in range(1, 40)}})
    began = time.process_time()
    with pytest.raises(ConfigError, match="unfold to more"), bounded():
        OmegaConf.resolve(config)
    assert time.process_time() - began < 30  # without the bound: 2 to the power of 40 steps


def test_lists_of_references_are_counted_with_what_is_in_them() -> None:
    config = OmegaConf.create({"a0": [1] * 10, **{f"a{n}": [f"${{a{n - 1}}}"] * 10 for n in range(1, 9)}})
    with pytest.raises(ConfigError, match="unfold to more") as caught, bounded():
        OmegaConf.resolve(config)
    assert f"{MOST:,}" in str(caught.value.seen)


def test_a_chain_as_deep_as_allowed_is_resolved_and_one_deeper_refused() -> None:
    def chain(length: int) -> dict[str, object]:
        return {"a0": 7, **{f"a{n}": f"${{a{n - 1}}}" for n in range(1, length + 1)}}

    config = OmegaConf.create(chain(DEEPEST))
    with bounded():
        assert config[f"a{DEEPEST}"] == 7
    config = OmegaConf.create(chain(DEEPEST + 1))
    with pytest.raises(ConfigError, match="unfold to more"), bounded():
        config[f"a{DEEPEST + 1}"]


def test_the_count_is_gone_afterwards_whatever_happened() -> None:
    with pytest.raises(ZeroDivisionError), bounded():
        raise ZeroDivisionError
    config = OmegaConf.create({"a0": [1] * (MOST + 1), "a1": "${a0}"})
    OmegaConf.resolve(config)
    assert len(config.a1) == MOST + 1
