"""A picture of error against seconds, one dot an estimator. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mlorun.errors import ConfigError
from mlorun.verify.program import Comparison


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


def draw(rows: Sequence[Comparison], title: str, path: Path) -> None:
    """Write the picture; its format is the file's suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    shown = sorted(
        (1000 * row.cost.seconds, row.error, row.name)
        for row in rows
        if row.cost is not None and row.error > 0 and row.norm > 0
    )
    for index, (milliseconds, error, name) in enumerate(shown):
        axes.scatter(milliseconds, error, s=24, color="tab:blue")
        # neighbours from left to right take turns above and below, or their names would cover each other
        offset = (4, 5) if index % 2 else (4, -11)
        axes.annotate(name, (milliseconds, error), xytext=offset, textcoords="offset points", fontsize=8)
    axes.set(xscale="log", yscale="log", title=title)
    axes.margins(x=0.12, y=0.1)
    axes.set_xlabel("milliseconds of one hypergradient")
    axes.set_ylabel("relative error against the exact hypergradient")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=120)
