"""Networks of one small cell, the search space of `darts` (after Liu et al. 2019, arXiv:1806.09055, section 2.1).

A link is an operation from an earlier node to a later one; a node is the sum of the links that end in it. The
supernetwork has every link. A derived cell has a few of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mlorun import ConfigError
from mlorun.run.seeds import derive_seed

KEPT = 2  # links that end in a node of a derived cell, from different nodes


class Zero(nn.Module):
    """No link."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def convolution(channels: int, size: int) -> nn.Module:
    """ReLU, convolution, batch norm."""
    layer = nn.Conv2d(channels, channels, size, padding=size // 2, bias=False)
    return nn.Sequential(nn.ReLU(), layer, nn.BatchNorm2d(channels, affine=False))


# for a number of channels, a module from (B, channels, H, W) to the same shape
OPERATIONS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda channels: Zero(),
    "skip": lambda channels: nn.Identity(),
    "conv_3x3": lambda channels: convolution(channels, 3),
    "conv_1x1": lambda channels: convolution(channels, 1),
    "avg_pool": lambda channels: nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False),
    "max_pool": lambda channels: nn.MaxPool2d(3, stride=1, padding=1),
}


@dataclass(frozen=True)
class Link:
    """An operation from node `source` to node `target`, as text "0-conv_3x3-1". Node 0 is the cell's input."""

    source: int
    operation: str
    target: int

    @classmethod
    def parse(cls, text: str) -> Link:
        """The link that a text names. Raises ConfigError where it names none."""
        parts = text.split("-")
        if len(parts) == 3 and parts[0].isdecimal() and parts[1] in OPERATIONS and parts[2].isdecimal():
            link = cls(int(parts[0]), parts[1], int(parts[2]))
            if link.source < link.target:
                return link
        fix = f"SOURCE-OPERATION-TARGET, e.g. 0-conv_3x3-1; one of {', '.join(OPERATIONS)}"
        raise ConfigError("a genotype has what is no link", where="genotype", seen=repr(text)[:80], fix=fix)

    def __str__(self) -> str:
        return f"{self.source}-{self.operation}-{self.target}"


def edges(nodes: int) -> list[tuple[int, int]]:
    """Every pair (source, target) of an earlier and a later node; 0 is the input, the last is `nodes`."""
    return [(source, target) for target in range(1, nodes + 1) for source in range(target)]


def derived(weights: Tensor) -> list[Link]:
    """For each node the strongest operation but none, on the KEPT edges where that is strongest. Section 2.4.

    weights   (edges, operations), in the order of `edges` and OPERATIONS
    """
    names, best = [*OPERATIONS][1:], weights[:, 1:].max(dim=1)
    links: list[Link] = []
    row, node = 0, 1  # the first edge into the node; its edges come from 0, 1, ..., node - 1
    while row < len(weights):
        strongest = best.values[row : row + node].topk(min(KEPT, node)).indices.sort().values.tolist()
        links += [Link(source, names[int(best.indices[row + source])], node) for source in strongest]
        row, node = row + node, node + 1
    return links


class CellNetwork(nn.Module):
    """A convolution, a cell of these links, the mean over the image, a linear layer: (B, 1, H, W) to (B, classes)."""

    def __init__(self, links: Sequence[Link], channels: int, classes: int) -> None:
        super().__init__()
        self.links = tuple(links)
        self.nodes = max(link.target for link in links)
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.operations = nn.ModuleList(OPERATIONS[link.operation](channels) for link in links)
        self.head = nn.Linear(self.nodes * channels, classes)

    def forward(self, images: Tensor, weights: Sequence[Tensor | float] | None = None) -> Tensor:
        """weights   one for each link, in order; by default 1"""
        values = [self.stem(images)]
        links = list(zip(self.links, self.operations, weights or [1.0] * len(self.links), strict=True))
        for node in range(1, self.nodes + 1):
            parts = [
                weight * operation(values[link.source]) for link, operation, weight in links if link.target == node
            ]
            values.append(torch.stack(parts).sum(0))
        logits: Tensor = self.head(torch.cat(values[1:], dim=1).mean(dim=(2, 3)))
        return logits


def supernetwork(nodes: int, channels: int, classes: int) -> CellNetwork:
    """Every operation on every edge, in the order of `edges` and OPERATIONS."""
    links = [Link(source, name, target) for source, target in edges(nodes) for name in OPERATIONS]
    return CellNetwork(links, channels, classes)


def cell_network(genotype: Sequence[str] | str, channels: int, classes: int) -> CellNetwork:
    """The network of a cell; `genotype` is a list of links, or the file of them that a search has left."""
    texts = _read(genotype) if isinstance(genotype, str) else genotype
    links = [Link.parse(text) for text in texts]
    ends = {link.target for link in links}
    if not ends or len(ends) < max(ends):
        seen = f"links that end in {sorted(ends)}"
        raise ConfigError("a genotype has a node where no link ends", where="genotype", seen=seen, fix="a link to each")
    return CellNetwork(links, channels, classes)


def _read(file: str) -> list[str]:
    try:
        return Path(file).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        fix = "a genotype-*.txt in artifacts/ of a run of darts_digits, or a list of links"
        raise ConfigError("a genotype cannot be read", where="genotype", seen=str(error)[:200], fix=fix) from error


def random_cell_network(draw: int, nodes: int, channels: int, classes: int) -> CellNetwork:
    """The network of a cell drawn from those that a search can derive, each as likely."""
    generator = torch.Generator().manual_seed(derive_seed(draw, "random_cell"))
    weights = torch.rand(len(edges(nodes)), len(OPERATIONS), generator=generator)
    return CellNetwork(derived(weights), channels, classes)
