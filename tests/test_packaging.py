"""A wheel, an editable install and a bare checkout run the same experiment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = ["-m", "mlorun", "experiment=mwn_digits", "engine.train_iters=5", "threads=1"]
# without this process's own places to import from
OUTER = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def run(python: Path | str, folder: Path, **environment: str) -> str:
    """params_sha256 of a run started in an empty folder."""
    folder.mkdir()
    done = subprocess.run(
        [str(python), *COMMAND],
        cwd=folder,
        env={**OUTER, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((folder / "runs" / "mwn_digits" / "latest" / "result.json").read_text())
    return str(result["params_sha256"])


def test_a_wheel_in_an_empty_environment_and_a_bare_checkout_give_the_same_bits(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    site = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # torch and the others are borrowed from here, behind the wheel's own folder; .pth files in there do not count
    borrowed = next(path for path in sys.path if path.endswith("site-packages") and (Path(path) / "torch").is_dir())
    (site / "borrowed.pth").write_text(borrowed + "\n")
    where = subprocess.run(
        [python, "-c", "import mlorun; print(mlorun.__file__)"],
        cwd=tmp_path,
        env=OUTER,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    assert run(python, tmp_path / "from_wheel") == run(sys.executable, tmp_path / "from_checkout", PYTHONPATH=str(ROOT))


def test_the_wheel_carries_configs_recipes_and_data_and_nothing_at_the_top_level(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for needed in (
        "mlorun/config/primary/config.yaml",
        "mlorun/configs/experiment/mwn_digits.yaml",
        "mlorun/recipes/reweighting.py",
        "mlorun/data/digits.npz",
    ):
        assert needed in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mlorun"}
    assert not [name for name in names if "tests" in name]
