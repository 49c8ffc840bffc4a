"""darts_digits: the search finds a cell that beats most random ones; cells, links and their texts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mlorun.recipes.cells import (
    KEPT,
    OPERATIONS,
    CellNetwork,
    Link,
    cell_network,
    derived,
    edges,
    random_cell_network,
    supernetwork,
)
from torch.func import functional_call

import mlorun
from mlorun.errors import ConfigError
from tests.recipes.runs import engine, metrics

pytestmark = pytest.mark.usefixtures("empty_folder")
SMALL = ("network.module.channels=2", "network.batch_size=8", "architecture.batch_size=8")


def test_the_strongest_operation_of_the_strongest_edges_is_kept_and_none_never_is() -> None:
    weights = torch.full((6, len(OPERATIONS)), 0.1)
    weights[:, 0] = 0.9  # none
    for row, operation, weight in ((0, 2, 0.3), (1, 3, 0.2), (2, 4, 0.3), (3, 5, 0.4), (4, 1, 0.2), (5, 2, 0.3)):
        weights[row, operation] = weight
    texts = [str(link) for link in derived(weights)]
    assert texts == ["0-conv_3x3-1", "0-conv_1x1-2", "1-avg_pool-2", "0-max_pool-3", "2-conv_3x3-3"]


def test_a_supernetwork_whose_weights_choose_a_cell_gives_what_that_cell_gives() -> None:
    whole = supernetwork(nodes=2, channels=3, classes=10).eval()
    cell = CellNetwork([Link.parse(text) for text in ("0-conv_3x3-1", "0-skip-2", "1-max_pool-2")], 3, 10).eval()
    cell.stem.load_state_dict(whole.stem.state_dict())
    cell.head.load_state_dict(whole.head.state_dict())
    for link, operation in zip(cell.links, cell.operations, strict=True):
        operation.load_state_dict(whole.operations[whole.links.index(link)].state_dict())
    images = torch.randn(4, 1, 8, 8)
    chosen = whole(images, [float(link in cell.links) for link in whole.links])
    assert torch.allclose(chosen, cell(images), atol=1e-6)


def test_every_operation_keeps_the_shape_and_none_gives_zero() -> None:
    x = torch.randn(2, 3, 8, 8)
    for make in OPERATIONS.values():
        assert make(3)(x).shape == x.shape
    assert not OPERATIONS["none"](3)(x).any() and torch.equal(OPERATIONS["skip"](3)(x), x)


def test_random_cells_differ_by_draw_and_are_cells_that_a_search_can_derive() -> None:
    cells = [random_cell_network(draw, nodes=3, channels=2, classes=10).links for draw in range(20)]
    assert cells[0] == random_cell_network(0, nodes=3, channels=2, classes=10).links
    assert len(set(cells)) > 10
    for links in cells:
        assert all((link.source, link.target) in edges(3) and link.operation != "none" for link in links)
        assert [sum(link.target == node for link in links) for node in (1, 2, 3)] == [1, 2, KEPT]


@pytest.mark.parametrize("genotype", [["0-conv-1"], ["1-skip-0"], ["0-skip"], ["0-skip-2"], [], "absent.txt"])
def test_what_is_no_genotype_is_refused(genotype: list[str] | str) -> None:
    with pytest.raises(ConfigError, match="genotype"):
        cell_network(genotype, channels=2, classes=10)


def test_the_architecture_s_gradient_goes_through_the_trial_step_of_the_network() -> None:
    """Equation 6 of the paper, by autograd through one written step of gradient descent."""
    program = engine("darts_digits", *SMALL, "network.optimizer.weight_decay=0", "network.optimizer.lr=0.5")
    network, architecture = program.problems["network"], program.problems["architecture"]
    program.probe()
    start = {name: p.detach().clone().requires_grad_() for name, p in network.module.named_parameters()}
    batches = {}
    for problem in (network, architecture):
        position = problem.stream.state_dict()
        batches[problem.name] = problem.get_batch()
        problem.stream.load_state_dict(position)
    for action in program.actions():
        if action.problem == "architecture":
            break
    by_engine = program.gradient("architecture")[0]

    def loss(parameters: dict[str, torch.Tensor], batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        weights = architecture().flatten().unbind()
        return F.cross_entropy(functional_call(network.module, parameters, (batch[0], weights)), batch[1])

    slopes = torch.autograd.grad(loss(start, batches["network"]), list(start.values()), create_graph=True)
    stepped = {name: p - 0.5 * slope for (name, p), slope in zip(start.items(), slopes, strict=True)}
    (expected,) = torch.autograd.grad(loss(stepped, batches["architecture"]), list(architecture.theta))
    held = {name: p.detach() for name, p in stepped.items()}
    (direct,) = torch.autograd.grad(loss(held, batches["architecture"]), list(architecture.theta))
    assert torch.allclose(by_engine, expected, rtol=1e-3, atol=1e-6)
    assert (expected - direct).norm() > 0.02 * expected.norm()  # else the test would pass without the second part


def test_a_search_leaves_its_cell_which_can_be_trained() -> None:
    config = mlorun.compose(["experiment=darts_digits", *SMALL, "engine.train_iters=2", "logger=jsonl"])
    result = mlorun.train(config)
    artifacts = Path("runs/darts_digits/latest/artifacts")
    assert result is not None and (artifacts / "cell-00000002.png").stat().st_size < 60_000
    file = artifacts / "genotype-00000002.txt"
    assert len(file.read_text().split()) == 3
    end = metrics("darts_digits_retrain", f"classifier.module.genotype={file}", "engine.train_iters=2")
    assert end["test/accuracy"] >= 0


@pytest.mark.slow
def test_the_derived_cell_beats_random_ones() -> None:
    mlorun.train(mlorun.compose(["experiment=darts_digits", "logger=jsonl"]))
    (file,) = Path("runs/darts_digits/latest/artifacts").glob("genotype-*.txt")
    found = metrics("darts_digits_retrain", f"classifier.module.genotype={file}")["test/accuracy"]
    random = [metrics("darts_digits_random", f"classifier.module.draw={draw}")["test/accuracy"] for draw in range(3)]
    assert 92 < found < 99  # five seeds: recipes/README.md
    assert found > sum(random) / 3 + 4
