"""Where a fault of a config was typed, as far as an error's text tells. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mlorun.config.shorthand import chosen, expand


def typed_for(key: str, arguments: Sequence[str]) -> str | None:
    """The override of `key` or of a key below it, as it was typed; without one, the key.

    OmegaConf gives some keys without what is above them.
    """
    keys = [
        (text.lstrip("+~").partition("=")[0], typed) for typed, written in both(arguments) for text in (typed, written)
    ]
    whole = (typed for name, typed in keys if name == key or name.startswith(f"{key}."))
    inside = (typed for name, typed in keys if key.startswith(f"{name}.") and typed.partition("=")[2].startswith("{"))
    ending = (typed for name, typed in keys if name.endswith(f".{key}"))
    return next(whole, None) or next(inside, None) or next(ending, None) or key or None


def both(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each argument as it was typed, and written out."""
    return zip(arguments, expand(arguments), strict=True)


def problems_of(arguments: Sequence[str]) -> list[str]:
    """The problems of the chosen experiment; the other arguments are not read."""
    experiment = chosen([text for text in arguments if text.startswith("experiment=")])
    return sorted(experiment.problems) if experiment else []


def in_text(pattern: str, error: BaseException) -> str | None:
    """The text of the first group that matches."""
    match = re.search(pattern, str(error))
    return next((group for group in match.groups() if group), None) if match else None


def first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
