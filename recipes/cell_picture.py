"""A picture of a cell: its nodes on a bow, its links as straight lines with their operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .cells import Link

WIDTH, HEIGHT, RADIUS = 640, 320, 18


def cell_picture(links: Sequence[Link]) -> Tensor:
    """(3, HEIGHT, WIDTH), in [0, 1]. Node 0 is the input; each node's output goes to the network's head."""
    nodes = max(link.target for link in links) + 1
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=14)
    across = [k / (nodes - 1) for k in range(nodes)]
    places = [(50 + x * (WIDTH - 100), 50 + 4 * x * (1 - x) * (HEIGHT - 100)) for x in across]
    for link in links:
        start, end = places[link.source], places[link.target]
        draw.line([start, end], fill="gray", width=2)
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        box = draw.textbbox(middle, link.operation, font=font, anchor="mm")
        draw.rectangle((box[0] - 3, box[1] - 3, box[2] + 3, box[3] + 3), fill="white")
        draw.text(middle, link.operation, fill="black", font=font, anchor="mm")
    for node, (x, y) in enumerate(places):
        draw.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill="lightblue", outline="black")
        draw.text((x, y), "in" if node == 0 else str(node), fill="black", font=font, anchor="mm")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
