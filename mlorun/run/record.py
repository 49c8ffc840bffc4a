"""run.json and result.json as they are read: whole, or refused on one screen. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlorun.errors import ConfigError

_IN_RUN = {"status": str, "overrides": list, "attempts": list}
_IN_RESULT = {"status": str, "exit_code": int, "steps": int, "metrics": dict}


def read_run(path: Path) -> dict[str, Any]:
    """The content of a run.json. Raises ConfigError for one that is damaged."""
    try:
        return _whole(path, _IN_RUN)
    except (OSError, ValueError) as error:
        raise ConfigError(
            "the record of the run cannot be read",
            where=str(path),
            seen=f"{type(error).__name__}: {error}",
            fix=f"a new run can begin with its weights: mlorun ... init_from={path.parent}",
        ) from error


def read_result(path: Path) -> dict[str, Any] | None:
    """The content of a result.json; None where there is none, or half of one: the run has no result yet."""
    try:
        return _whole(path, _IN_RESULT)
    except (OSError, ValueError):
        return None


def _whole(path: Path, wanted: Mapping[str, type]) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}, and no object")
    for key, kind in wanted.items():
        if not isinstance(content.get(key), kind):
            raise ValueError(f"{key} is {str(content.get(key))[:60]!r}")
    return content
