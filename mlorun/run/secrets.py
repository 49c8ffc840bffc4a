"""Secrets of the environment: used, and never written down; in their place stands ${oc.env:NAME}. No torch.

A variable is a secret where a part of its name, between underscores, ends in KEY, TOKEN, SECRET, PASSWORD, PASSWD or
CREDENTIALS (WANDB_API_KEY, HF_TOKEN), and its value has eight characters or more: shorter ones are in texts by chance.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlorun.errors import ConfigError

SHORTEST = 8  # characters of a value
_SECRET = re.compile(
    r"(?:[A-Z0-9]+_)*[A-Z0-9]*(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)S?(?:_[A-Z0-9]+)*", re.I
)


def masked(text: str) -> str:
    """`text` with ${oc.env:NAME} for the value of every secret in it. OmegaConf reads the value back."""
    for value, name in _secrets():
        text = text.replace(value, f"${{oc.env:{name}}}")
    return text


def require_no_secret(path: Path | str, where: str) -> None:
    """Raise ConfigError for a path with a secret in it.

    where   the key of the config that it comes from
    """
    shown = masked(str(path))
    if shown != str(path):
        raise ConfigError(
            "a secret would become the name of a folder", where=where, seen=shown, fix="leave the variable out of it"
        )


def _secrets() -> list[tuple[str, str]]:
    """Value and name, the longest value first: one may hold another."""
    found: dict[str, str] = {}
    for name, value in sorted(os.environ.items()):
        if len(value) >= SHORTEST and _SECRET.fullmatch(name):
            found.setdefault(value, name)
    return sorted(found.items(), key=lambda pair: -len(pair[0]))
