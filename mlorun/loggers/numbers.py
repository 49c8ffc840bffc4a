"""Metrics as a person reads them."""

from __future__ import annotations

from collections.abc import Mapping


def format_metric(name: str, value: float) -> str:
    """Accuracies, which are percentages, with two decimals; everything else with four digits, zeros kept."""
    if name.rpartition("/")[2].endswith("accuracy"):
        return f"{value:.2f} %"
    return f"{value:#.4g}".rstrip(".")


def listed(metrics: Mapping[str, float]) -> str:
    """`loss 0.2134  accuracy 94.00 %`"""
    return "  ".join(f"{name} {format_metric(name, value)}" for name, value in metrics.items())
