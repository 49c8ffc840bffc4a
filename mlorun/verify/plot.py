"""A picture of error against seconds, one dot an estimator. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlorun.errors import ConfigError
from mlorun.verify.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# of a name beside its point: points upwards, and to which side, nearest first
PLACES = tuple((sign * lift, side) for lift in (0, 9, 18, 28, 38, 50, 62) for sign in (1, -1) for side in (1, -1))


def require_picture(path: Path) -> None:
    """Raise ConfigError where the picture could not be drawn and written."""
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise ConfigError(
            "a picture needs matplotlib", where="--plot", fix="pip install 'mlorun[plot]', or leave --plot out"
        ) from None
    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix[1:] not in known:
        raise ConfigError(
            "a picture of this format cannot be written",
            where="--plot",
            seen=str(path),
            fix=f"a suffix of {', '.join(known)}",
        )
    if path.is_dir() or not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise ConfigError(
            "the picture cannot be written there",
            where="--plot",
            seen=str(path),
            fix="a folder that is there and yours",
        )


def draw(rows: Sequence[Comparison], title: str, path: Path) -> bool:
    """Write the picture; its format is the file's suffix. False, and no file, where no error is known."""
    from matplotlib.figure import Figure

    shown = sorted(
        (1000 * row.cost.seconds, row.error, row.name)
        for row in rows
        if row.cost is not None and row.error > 0 and row.norm > 0
    )
    if not shown:
        return False
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter([row[0] for row in shown], [row[1] for row in shown], s=24, color="tab:blue", zorder=3)
    axes.set(xscale="log", yscale="log", title=title)
    axes.margins(x=0.12, y=0.2)
    axes.set_xlabel("milliseconds of one hypergradient")
    axes.set_ylabel("relative distance from the implicit function theorem")
    axes.grid(visible=True, alpha=0.3)
    figure.draw_without_rendering()  # from here on it is known where points and names come to lie
    _name(axes, shown)
    figure.savefig(path, dpi=120)
    return True


def _name(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's name at the nearest place where it covers no other name and no point; a line leads to it."""
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

    corners = [axes.transData.transform((x, y)) - 4 for x, y, _ in points]
    taken = [Bbox.from_bounds(float(left), float(bottom), 8, 8) for left, bottom in corners]
    for x, y, name in points:
        labels = []
        for lift, side in PLACES:
            label = axes.annotate(
                name,
                (x, y),
                xytext=(side * (5 if abs(lift) < 12 else 12), lift),
                textcoords="offset points",
                fontsize=8,
                ha="left" if side > 0 else "right",
                va="center",
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "gray", "shrinkA": 0, "shrinkB": 3},
            )
            labels.append(label)
            label.get_window_extent()  # puts it in its place
            box = Text.get_window_extent(label)  # without the line
            if (
                box.count_overlaps(taken) == 0
                and axes.bbox.fully_containsx(box.x0)
                and axes.bbox.fully_containsx(box.x1)
            ):
                break
        chosen = labels.pop()
        for label in labels:
            label.remove()
        taken.append(Text.get_window_extent(chosen))
