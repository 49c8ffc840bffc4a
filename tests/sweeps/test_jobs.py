"""A job as its records have it: what is damaged, or comes from a stranger, leads nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlorun.errors import ConfigError
from mlorun.run.atomic import write_json
from mlorun.sweeps.jobs import RECORD, Job
from mlorun.sweeps.ledger import FILE, Ledger


def swept(folder: Path, **changes: Any) -> Path:
    """The folder of a sweep of one job, with something else in its record."""
    Ledger(folder, "x", ("seed=0",), jobs=[Job(0, ("seed=0",))]).write()
    fields = json.loads((folder / FILE).read_text())
    fields["jobs"][0] |= changes
    write_json(folder / FILE, fields)
    return folder


@pytest.mark.parametrize("number", ["../../elsewhere", "/tmp", None, [0]])
def test_the_number_of_a_job_is_a_number(number: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the record of the sweep cannot be read"):
        Ledger.read(swept(tmp_path, number=number))


@pytest.mark.parametrize("damaged", ["", "[]", '{"exit_code": "x"}', '{"exit_code": null}'])
def test_a_damaged_record_of_a_job_says_nothing(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / RECORD).write_text(damaged)
    (job,) = Ledger.read(swept(tmp_path)).jobs
    assert (job.status, job.exit_code) == ("waiting", None)
    (job,) = Ledger.read(swept(tmp_path, status="running")).jobs
    assert job.status == "died"


@pytest.mark.parametrize(("code", "status"), [(2, "refused"), (1, "failed"), (5, "failed")])
def test_a_job_without_a_run_is_known_by_its_exit_code(code: int, status: str, tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    write_json(tmp_path / "0" / RECORD, {"exit_code": code, "error": "error: x"})
    (job,) = Ledger.read(swept(tmp_path)).jobs
    assert (job.status, job.exit_code, job.error) == (status, code, "error: x")


def test_a_job_is_known_by_its_overrides_and_not_by_its_number() -> None:
    assert Job(0, ("seed=0", "a=1")).id == Job(7, ("seed=0", "a=1")).id != Job(0, ("seed=0", "a=2")).id
