"""Experiments of a user's own, in ./configs."""

from __future__ import annotations

from pathlib import Path

from mlorun.config.locations import configs_dir


class Experiments:
    """Writes experiments into ./configs, which are put before ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "configs"

    def write(self, name: str, *, drop: str = "", append: str = "") -> Path:
        """mwn_digits under another name, without the lines that contain `drop`, and with more at its end."""
        text = (configs_dir() / "experiment" / "mwn_digits.yaml").read_text()
        lines = [line for line in text.splitlines() if not drop or drop not in line]
        return self.raw(f"experiment/{name}.yaml", "\n".join(lines) + "\n" + append)

    def raw(self, path: str, text: str) -> Path:
        """A file of any content."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file
