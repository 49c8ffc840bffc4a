"""A picture of error against seconds, one dot an estimator. Needs matplotlib, the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlorun.errors import ConfigError
from mlorun.verify.program import Comparison


def require_matplotlib() -> None:
    """Raise ConfigError where the picture could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "a picture needs matplotlib", where="--plot", fix="pip install 'mlorun[plot]', or leave --plot out"
        ) from None


def draw(rows: Sequence[Comparison], title: str, path: Path) -> None:
    """Write the picture; its format is the file's suffix."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in rows:
        if row.cost is None or not row.error > 0:
            continue
        axes.scatter(1000 * row.cost.seconds, row.error, s=24, color="tab:blue")
        axes.annotate(
            row.name, (1000 * row.cost.seconds, row.error), xytext=(4, 4), textcoords="offset points", fontsize=8
        )
    axes.set(xscale="log", yscale="log", title=title)
    axes.set_xlabel("milliseconds of one hypergradient")
    axes.set_ylabel("relative error against the exact hypergradient")
    axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, dpi=150)
