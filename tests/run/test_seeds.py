"""One seed for everything random, and torch told to repeat itself."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mlorun.errors import ConfigError
from mlorun.run.seeds import derive_seed, prepare_torch, seed_everything

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def torch_as_it_was() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


def test_a_derived_seed_is_the_same_on_every_machine() -> None:
    # written down once: a change here changes every result that anyone has
    assert derive_seed(0, "module", "classifier") == 5846732308022623766


def test_derived_seeds_differ_by_seed_name_and_where_one_name_ends() -> None:
    seeds = [
        derive_seed(0),
        derive_seed(1),
        derive_seed(0, "a"),
        derive_seed(0, "a", "bc"),
        derive_seed(0, "ab", "c"),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("seed", [0, 7, 2**40, 2**63 - 1, 2**70, -1])
def test_the_same_seed_gives_the_same_numbers_from_all_three_generators(seed: int) -> None:
    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_everything(seed)
    first = draw()
    assert draw() != first
    seed_everything(seed)
    assert draw() == first


def test_threads_are_set_where_a_number_is_given_and_left_alone_elsewhere() -> None:
    prepare_torch(CPU, threads=1, deterministic=True)
    assert torch.get_num_threads() == 1
    prepare_torch(CPU, threads=None, deterministic=True)
    assert torch.get_num_threads() == 1


def test_no_threads_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs a thread"):
        prepare_torch(CPU, threads=0, deterministic=True)


def test_deterministic_warns_instead_of_failing_and_can_be_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    prepare_torch(CPU, threads=None, deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    prepare_torch(CPU, threads=None, deterministic=False)
    assert not torch.are_deterministic_algorithms_enabled()
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_new_memory_is_not_filled_on_behalf_of_determinism() -> None:
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    prepare_torch(CPU, threads=None, deterministic=True)
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.parametrize(("own", "used"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_on_cuda_the_cublas_workspace_is_fixed_unless_the_user_chose_one(
    monkeypatch: pytest.MonkeyPatch, own: str | None, used: str
) -> None:
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", own or "")
    if own is None:
        monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    prepare_torch(torch.device("cuda", 1), threads=None, deterministic=True)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == used
    assert chosen == [torch.device("cuda", 1)]
    assert torch.backends.cudnn.deterministic
    assert not torch.backends.cudnn.benchmark
