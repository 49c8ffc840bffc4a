"""mlorun show OVERRIDES...: the config that a run would have, resolved."""

from __future__ import annotations

import sys

from omegaconf import OmegaConf

from mlorun.config.compose import composed
from mlorun.config.masked import masked_config


def main(args: list[str]) -> int:
    """Print the config; in colour on a terminal."""
    text = OmegaConf.to_yaml(masked_config(composed(args)))
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.syntax import Syntax

        Console().print(Syntax(text, "yaml", background_color="default"))
    else:
        print(text, end="")
    return 0
