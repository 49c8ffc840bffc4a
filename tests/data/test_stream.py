"""Streams: endless, each epoch a permutation, resumable to the bit, in memory and through a loader alike."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from mlorun.data.batches import Split, map_tensors
from mlorun.data.stream import LoaderStream, MemoryStream, Stream, stream
from mlorun.errors import DataError

CPU = torch.device("cpu")
ROWS = 23
BATCH = 5  # four batches an epoch; three rows are left over in each


class Pair(NamedTuple):
    inputs: Tensor
    labels: Tensor


class Noisy(Dataset[tuple[int, Tensor]]):
    """A random transform that draws from every generator there is."""

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, row: int) -> tuple[int, Tensor]:
        return row, torch.rand(3) + random.random() + np.random.rand()


def memory() -> Split:
    return (torch.arange(ROWS), torch.arange(ROWS * 2.0).reshape(ROWS, 2))


def dataset() -> Split:
    return TensorDataset(*memory())


def opened(split: Split, **changes: Any) -> Stream:
    return stream(split, **{"batch_size": BATCH, "seed": 0, "name": "classifier", "device": CPU, **changes})


def take(batches: Stream, count: int) -> list[list[Tensor]]:
    taken: list[list[Tensor]] = []
    for _ in range(count):
        taken.append([])
        map_tensors(taken[-1].append, next(batches))
    return taken


def same(first: list[list[Tensor]], second: list[list[Tensor]]) -> bool:
    return all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(first, second, strict=True)
    )


both = pytest.mark.parametrize("split", [memory(), dataset()], ids=["memory", "loader"])


def test_tensors_stay_in_memory_and_datasets_are_loaded() -> None:
    assert isinstance(opened(memory()), MemoryStream)
    assert isinstance(opened(dataset()), LoaderStream)


@both
def test_every_epoch_is_a_permutation_less_its_incomplete_last_batch(split: Split) -> None:
    batches = opened(split)
    assert batches.batches_per_epoch == ROWS // BATCH
    orders = []
    for _ in range(6):
        rows = torch.cat([batch[0] for batch in take(batches, batches.batches_per_epoch)]).tolist()
        assert len(rows) == len(set(rows)) == 20
        assert set(rows) <= set(range(ROWS))
        orders.append(tuple(rows))
    assert len(set(orders)) == 6  # every epoch has an order of its own
    assert set().union(*orders) == set(range(ROWS))  # what one epoch drops, another serves


def test_a_batch_that_divides_the_split_serves_every_row_in_every_epoch() -> None:
    batches = opened(torch.arange(20))
    for _ in range(3):
        assert sorted(torch.cat([batch[0] for batch in take(batches, 4)]).tolist()) == list(range(20))


@both
def test_rows_of_all_tensors_belong_together(split: Split) -> None:
    for rows, values in take(opened(split), 9):
        assert torch.equal(values, torch.stack([rows * 2.0, rows * 2.0 + 1], dim=1))


@both
def test_epoch_and_position_count_the_batches(split: Split) -> None:
    batches = opened(split)
    states = []
    for _ in range(9):
        states.append((batches.epoch, batches.position))
        next(batches)
    assert states == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
    assert batches.state_dict() == {"epoch": 2, "position": 1}


@both
@pytest.mark.parametrize("done", [0, 1, 3, 4, 5, 8, 11])
def test_a_fresh_stream_resumes_anywhere_to_the_bit(split: Split, done: int) -> None:
    first = opened(split)
    take(first, done)
    state = first.state_dict()
    expected = take(first, 7)
    resumed = opened(split)
    take(resumed, 2)  # a state replaces whatever the stream was doing
    resumed.load_state_dict(state)
    assert same(take(resumed, 7), expected)
    assert resumed.state_dict() == first.state_dict()


@both
def test_setting_the_state_back_yields_the_same_batches_again(split: Split) -> None:
    batches = opened(split)
    take(batches, 3)
    state = batches.state_dict()
    first = take(batches, 4)
    batches.load_state_dict(state)
    assert same(take(batches, 4), first)


def test_memory_and_loader_serve_the_same_batches() -> None:
    assert same(take(opened(memory()), 10), take(opened(dataset()), 10))


@both
def test_order_depends_on_the_seed_and_on_the_name(split: Split) -> None:
    first = take(opened(split), 4)
    assert same(take(opened(split), 4), first)
    assert not same(take(opened(split, seed=1), 4), first)
    assert not same(take(opened(split, name="reweight"), 4), first)


def test_one_problems_order_does_not_depend_on_another_stream() -> None:
    alone = take(opened(memory()), 6)
    torch.manual_seed(99)
    other, batches = opened(memory(), name="reweight", batch_size=2), opened(memory())
    together = []
    for _ in range(6):
        take(other, 3)
        together += take(batches, 1)
    assert same(together, alone)


def test_another_process_serves_the_same_order() -> None:
    code = (
        "import torch; from mlorun.data.stream import stream; "
        f"batches = stream(torch.arange({ROWS}), batch_size={BATCH}, seed=0, name='classifier', "
        "device=torch.device('cpu')); print([next(batches).tolist() for _ in range(6)])"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONHASHSEED": "12"},  # Python's own hash of a text differs between processes
    )
    here = [batch[0].tolist() for batch in take(opened(memory()), 6)]
    assert finished.stdout.strip() == str(here)


@both
def test_a_stream_leaves_the_global_generator_alone(split: Split) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    take(opened(split), 6)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "split",
    [
        torch.arange(ROWS),
        [torch.arange(ROWS), torch.arange(ROWS)],
        {"inputs": torch.arange(ROWS), "deep": (torch.arange(ROWS), {"more": torch.arange(ROWS)})},
        Pair(torch.arange(ROWS), torch.arange(ROWS)),
    ],
    ids=["tensor", "list", "mapping", "named tuple"],
)
def test_a_batch_has_the_form_of_its_split(split: Split) -> None:
    batch = next(opened(split))
    assert type(batch) is type(split)
    if isinstance(split, dict):
        assert torch.equal(batch["deep"][1]["more"], batch["inputs"])
    leaves: list[Tensor] = []
    map_tensors(leaves.append, batch)
    assert all(len(leaf) == BATCH and torch.equal(leaf, leaves[0]) for leaf in leaves)


def test_changing_a_batch_in_place_leaves_the_split_as_it_was() -> None:
    split = (torch.arange(ROWS), torch.zeros(ROWS, 2))
    next(opened(split))[1].fill_(7.0)
    assert split[1].abs().sum() == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_random_transforms_are_the_same_with_any_number_of_workers_and_after_a_resume(workers: int) -> None:
    expected = take(opened(Noisy()), 9)
    torch.manual_seed(17)
    random.seed(17)
    batches = opened(Noisy(), workers=workers)
    assert same(take(batches, 9), expected)
    batches.load_state_dict({"epoch": 1, "position": 2})
    assert same(take(batches, 3), expected[6:])


def test_random_transforms_do_not_move_the_generators_of_the_process() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    expected = (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    take(opened(Noisy()), 3)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


@both
def test_a_batch_larger_than_the_split_is_refused_with_both_numbers(split: Split) -> None:
    assert opened(split, batch_size=ROWS).batches_per_epoch == 1
    with pytest.raises(DataError) as caught:
        opened(split, batch_size=ROWS + 1)
    assert caught.value.where == "problems.classifier.batch_size"
    assert "24" in str(caught.value) and "23" in str(caught.value)


@pytest.mark.parametrize("batch_size", [0, -4, 1.5, "ten", None])
def test_a_batch_size_that_is_no_positive_whole_number_is_refused(batch_size: Any) -> None:
    with pytest.raises(DataError, match="whole number"):
        opened(memory(), batch_size=batch_size)


@both
@pytest.mark.parametrize(
    "state", [{}, {"epoch": 0}, {"epoch": 0, "position": 4}, {"epoch": -1, "position": 0}, {"epoch": "0"}]
)
def test_a_state_that_the_stream_cannot_have_is_refused(split: Split, state: dict[str, Any]) -> None:
    batches = opened(split)
    with pytest.raises(DataError, match="does not exist"):
        batches.load_state_dict(state)
    assert batches.state_dict() == {"epoch": 0, "position": 0}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@both
def test_a_cuda_stream_serves_the_order_of_the_cpu(split: Split) -> None:
    on_gpu = take(opened(split, device=torch.device("cuda")), 9)
    assert all(tensor.is_cuda for batch in on_gpu for tensor in batch)
    assert same([[tensor.cpu() for tensor in batch] for batch in on_gpu], take(opened(split), 9))
