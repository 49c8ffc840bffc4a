"""Random smooth deformations of images, whose sizes are parameters; and a blur and a noise of fixed size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlorun.errors import ConfigError

from .modules import mlp

SHIFT, AFFINE, ELASTIC = range(3)  # kinds of fields
FREQUENCIES = range(4)  # of the cosines along each axis
LEARNED = ("size", "kinds", "fields")  # what may be learned of a deformation


class Deformation(nn.Module):
    """x' = grid_sample(x, grid + sum over k of phi_k sigma_k noise_k), noise_k standard normal for each image.

    The 32 displacement fields phi_k have a mean square of 1 over the image, so sigma_k is a root mean square in pixels:
    2 shifts, 4 linear maps, and 26 products of cosines, cos(pi i x) cos(pi j y) along either axis.

    pixels    along each side of the images
    shift, affine, elastic   where the sizes of each kind start, in pixels; 0 leaves the kind out
    slope     sigma of a cosine field is elastic (frequency / lowest frequency)^-slope
    learned   which numbers are parameters. "size": the logarithm of the root mean square displacement by all fields
              together, of which every field keeps its share; "kinds": log shift, log affine, log elastic and slope;
              "fields": every log sigma_k
    pairs     each image comes twice, by noise and by -noise. To first order in sigma a deformation changes a loss by a
              term of mean zero; in pairs it cancels, and the derivative in log sigma has much less noise
    """

    fields: Tensor
    kinds: Tensor
    octaves: Tensor
    shares: Tensor
    grid: Tensor

    def __init__(
        self, pixels: int, shift: float, affine: float, elastic: float, slope: float, learned: str, pairs: bool
    ) -> None:
        super().__init__()
        starts = {"shift": shift, "affine": affine, "elastic": elastic}
        for name, start in starts.items():
            if not start >= 0:
                raise ConfigError("a size is at least 0 pixels", where=name, seen=f"{start}")
        if learned not in LEARNED:
            raise ConfigError(f"learned is one of {', '.join(LEARNED)}", where="learned", seen=f"{learned}")
        fields, kinds, frequencies = displacement_fields(pixels)
        self.register_buffer("fields", fields.flatten(1) * (2.0 / pixels), persistent=False)  # in grid_sample's units
        self.register_buffer("kinds", kinds, persistent=False)
        lowest = frequencies[kinds == ELASTIC].min()
        self.register_buffer(
            "octaves", torch.where(kinds == ELASTIC, (frequencies / lowest).log(), 0.0), persistent=False
        )
        grid = F.affine_grid(torch.eye(2, 3)[None], [1, 1, pixels, pixels], align_corners=False)
        self.register_buffer("grid", grid.flatten(), persistent=False)
        self.learned = learned
        self.pairs = pairs
        self.pixels = pixels
        # of size 0: -inf, whose exponential and its derivative are 0
        log_kinds = torch.tensor([*starts.values()]).log()
        log_fields = log_kinds[kinds] - slope * self.octaves
        if learned == "size":
            total = log_fields.exp().norm()
            self.register_buffer("shares", log_fields.exp() / total.clamp(min=1e-30), persistent=False)
            self.log_size = nn.Parameter(total.log())
        elif learned == "kinds":
            self.log_sizes = nn.Parameter(log_kinds)
            self.slope = nn.Parameter(torch.tensor(float(slope)))
        else:
            self.log_sizes = nn.Parameter(log_fields)

    def sizes(self) -> Tensor:
        """sigma_k in pixels, (32,)."""
        if self.learned == "size":
            return self.shares * self.log_size.exp()
        if self.learned == "kinds":
            return (self.log_sizes[self.kinds] - self.slope * self.octaves).exp()
        return self.log_sizes.exp()

    def size(self) -> Tensor:
        """Root mean square displacement, in pixels, by all fields together, ()."""
        return self.sizes().square().sum().sqrt()

    def size_of(self, kind: int) -> Tensor:
        """Root mean square displacement, in pixels, by all fields of a kind together, ()."""
        return self.sizes()[self.kinds == kind].square().sum().sqrt()

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, pixels, pixels), each deformed by a draw of its own; in pairs (2 B, ...), first by +noise."""
        # drawn in float32 always, so that a replay in double sees the same noise
        noise = torch.randn(len(images), len(self.fields), device=images.device).to(images.dtype)
        if self.pairs:
            images, noise = torch.cat([images, images]), torch.cat([noise, -noise])
        moved = self.grid + (noise * self.sizes()) @ self.fields
        grid = moved.view(len(images), self.pixels, self.pixels, 2)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def displacement_fields(pixels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fields (32, pixels, pixels, 2) of mean square 1, their kinds (32,), and frequencies (32,): 1 where no cosine."""
    along = (torch.arange(pixels) + 0.5) / pixels
    y, x = torch.meshgrid(along, along, indexing="ij")
    waves = [(i, j) for i, j in product(FREQUENCIES, repeat=2) if i + j > 1]  # a wave of 0 or 1 is nearly affine
    shapes = [(SHIFT, 1.0, torch.ones_like(x)), (AFFINE, 1.0, x - 0.5), (AFFINE, 1.0, y - 0.5)]
    shapes += [(ELASTIC, math.hypot(i, j), torch.cos(math.pi * i * x) * torch.cos(math.pi * j * y)) for i, j in waves]
    fields = torch.zeros(2 * len(shapes), pixels, pixels, 2)
    for number, (_, _, shape) in enumerate(shapes):
        for axis in (0, 1):
            fields[2 * number + axis, ..., axis] = shape / shape.square().mean().sqrt()
    kinds, frequencies = zip(*((kind, frequency) for kind, frequency, _ in shapes for _ in range(2)), strict=True)
    return fields, torch.tensor(kinds), torch.tensor(frequencies)


class BlurAndNoise(nn.Module):
    """Images blurred by a Gaussian, in training and evaluation; with normal noise added in training.

    blur, noise   standard deviations, in pixels and in the images' own unit; 0 is none
    """

    kernel: Tensor

    def __init__(self, blur: float, noise: float) -> None:
        super().__init__()
        if not (blur >= 0 and noise >= 0):
            raise ConfigError("blur and noise are at least 0", where="blur", seen=f"{blur}, {noise}")
        self.reach = math.ceil(3 * blur)
        offsets = torch.arange(-self.reach, self.reach + 1.0)
        weights = torch.exp(-(offsets.square()) / (2 * blur**2)) if blur else torch.ones(1)
        self.register_buffer("kernel", weights / weights.sum(), persistent=False)
        self.noise = noise

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, H, W) to the same."""
        if self.reach:
            padded = F.pad(images, (self.reach,) * 4, mode="replicate")
            images = F.conv2d(F.conv2d(padded, self.kernel.view(1, 1, 1, -1)), self.kernel.view(1, 1, -1, 1))
        if self.training and self.noise:
            images = images + self.noise * torch.randn(images.shape, device=images.device).to(images.dtype)
        return images


def blurred_mlp(sizes: Sequence[int], blur: float, noise: float) -> nn.Sequential:
    """An mlp of blurred images; see `BlurAndNoise`."""
    return nn.Sequential(BlurAndNoise(blur, noise), mlp(sizes))
