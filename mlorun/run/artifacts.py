"""Artifacts: pictures, tables, arrays and texts of a run, written into its folder."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlorun.errors import RunError
from mlorun.run.atomic import atomic_file

Save = Callable[[str, Any, int], None]  # name, value, step


def write(folder: Path, name: str, value: Any, step: int) -> Path:
    """Write `value` as folder/NAME-STEP.SUFFIX; its path. The same name and step write the same file anew.

    name    letters, digits, '-', '_', '.', and '/' for a folder
    value   a picture: a tensor or array of numbers in [0, 1], (H, W), (1, H, W) or (3, H, W) or a batch of those, which
            becomes a grid: PNG. A table: a sequence of mappings with the same keys: CSV. Text: TXT. Any other tensor or
            array: NPY. An object with `savefig`, e.g. a figure of matplotlib: PNG

    Raises RunError for another name or value.
    """
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name) or ".." in name.split("/"):
        raise RunError("an artifact has a name that no file can have", where="save_artifact", seen=repr(name)[:80])
    data, suffix = _encoded(name, value)
    path = folder / f"{name}-{step:08d}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(data)
    return path


def is_picture(value: Any) -> bool:
    """Whether `value` is written as a picture."""
    return hasattr(value, "savefig") or (isinstance(value, Tensor | np.ndarray) and _is_image(tuple(value.shape)))


def pixels(value: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """A picture, or a grid of pictures, as (1 or 3, H, W) on the CPU, in [0, 1]."""
    from torchvision.utils import make_grid

    images = torch.as_tensor(value).detach().to("cpu", torch.float32)
    if images.dim() == 2:
        images = images[None]
    grid: Tensor = make_grid(images, padding=1) if images.dim() == 4 else images
    return grid.clamp(0, 1)


def _is_image(shape: tuple[int, ...]) -> bool:
    if len(shape) == 2:
        return min(shape) > 1
    return len(shape) in (3, 4) and shape[-3] in (1, 3) and min(shape[-2:]) > 1


def _encoded(name: str, value: Any) -> tuple[bytes, str]:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace"), "txt"
    buffer = io.BytesIO()
    if hasattr(value, "savefig"):
        value.savefig(buffer, format="png", metadata={"Software": None})
        return buffer.getvalue(), "png"
    if is_picture(value):
        from torchvision.transforms.functional import to_pil_image

        to_pil_image((pixels(value) * 255).round().to(torch.uint8)).save(buffer, format="png")
        return buffer.getvalue(), "png"
    if isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        np.save(buffer, array, allow_pickle=False)
        return buffer.getvalue(), "npy"
    if isinstance(value, Sequence) and value and all(isinstance(row, Mapping) for row in value):
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(value[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(value)
        return text.getvalue().encode(), "csv"
    raise RunError(
        f"the artifact {name!r} cannot be written",
        where="save_artifact",
        seen=type(value).__name__,
        fix="a picture, an array, a figure, a text, or a list of mappings",
    )
