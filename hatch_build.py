"""Build hook: configs/ and recipes/ lie beside the package in a checkout, and travel inside it in a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CARRIED = ("configs", "recipes")


class CarryConfigsAndRecipes(BuildHookInterface):  # type: ignore[type-arg]
    """Acts on wheels that are not editable: an editable install reads both folders where they are."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or version == "editable":
            return
        for folder in CARRIED:
            source = Path(self.root) / folder
            if not source.is_dir():
                raise FileNotFoundError(f"{source} belongs in the wheel and is not there")
            build_data["force_include"][str(source)] = f"mlorun/{folder}"
