"""A bound on what the ${...} references of a config unfold to. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import Container, DictConfig, ListConfig

from mlorun.errors import ConfigError

MOST = 3_000  # values, and each hundred characters of a text counts as one
DEEPEST = 50  # references that lead to references


@contextmanager
def bounded() -> Iterator[None]:
    """Within it, references are counted. Raises ConfigError where they unfold to more than a config can be.

    A list of nine references to a list of nine references, ten times over, has 3,486,784,401 values.
    """
    original = Container._resolve_node_interpolation
    left, depth, seen = MOST, 0, ""

    def counted(self: Container, *args: Any, **kwargs: Any) -> Any:
        nonlocal left, depth, seen
        depth += 1
        try:
            if depth > DEEPEST:
                seen = f"more than {DEEPEST} references that lead to each other"
            if not seen:
                node = original(self, *args, **kwargs)
                left -= _size(node, left)
                if left < 0:
                    seen = seen or f"more than {MOST:,} values"
            if seen:
                raise ConfigError(seen)
            return node
        finally:
            depth -= 1

    Container._resolve_node_interpolation = counted  # type: ignore[method-assign]
    try:
        yield
    except Exception as error:
        if seen:
            raise _fault(seen) from error
        raise
    finally:
        Container._resolve_node_interpolation = original  # type: ignore[method-assign]
    if seen:
        raise _fault(seen)


def _size(node: Any, most: int) -> int:
    """How many values are in a node; a number above `most` where there are more."""
    count, waiting = 0, [node]
    while waiting and count <= most:
        one = waiting.pop()
        count += 1
        if isinstance(one, DictConfig | ListConfig):
            content = one._content
            if isinstance(content, dict | list):
                waiting.extend(content.values() if isinstance(content, dict) else content)
                continue
        text = one._value() if hasattr(one, "_value") else one
        if isinstance(text, str):
            count += len(text) // 100
    return count


def _fault(seen: str) -> ConfigError:
    return ConfigError(
        "the references of a config unfold to more than a config can be", where="${...}", seen=seen, fix="write it out"
    )
