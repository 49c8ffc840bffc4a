"""Checks of an estimator's options."""

from __future__ import annotations

from collections.abc import Sequence

from mlorun.errors import ConfigError


def at_least(name: str, value: float, bound: float) -> None:
    """Raise ConfigError for an option below its bound, or NaN."""
    if not value >= bound:
        raise ConfigError(f"{name} must be at least {bound:g}", where=name, seen=f"{value}")


def positive(name: str, value: float) -> None:
    """Raise ConfigError for an option that is not above 0, or NaN."""
    if not value > 0:
        raise ConfigError(f"{name} must be positive", where=name, seen=f"{value}")


def one_of(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ConfigError for an option that is none of the choices."""
    if value not in choices:
        fix = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise ConfigError(f"{name} is {value!r}", where=name, fix=fix)


def positive_or_lr(name: str, value: object) -> None:
    """Raise ConfigError for what is neither a positive number nor `lr`, the lower optimizer's learning rate."""
    if isinstance(value, str) or not isinstance(value, int | float):
        if value != "lr":
            raise ConfigError(f"{name} is {value!r}", where=name, fix="a number, or lr")
    else:
        positive(name, value)
