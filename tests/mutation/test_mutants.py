"""Mutants stand on lines that are there, and the table of CONTRIBUTING.md counts them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.mutation.mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_text_of_every_mutant_is_in_its_file_once() -> None:
    misplaced = [
        f"{mutant.file}: {mutant.name}"
        for mutant in MUTANTS
        if (ROOT / "mlorun" / mutant.file).read_text(encoding="utf-8").count(mutant.old) != 1
    ]
    assert not misplaced


def test_the_table_counts_the_mutants_of_every_part() -> None:
    planted = Counter(mutant.part for mutant in MUTANTS)
    unseen = Counter(mutant.part for mutant in MUTANTS if mutant.equivalent)
    rows = [f"| `mlorun/{part}` | {planted[part]} | {unseen[part]} |" for part in sorted(planted)]
    table = "\n".join([*rows, f"| together | {planted.total()} | {unseen.total()} |"])
    assert table in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), f"write this into it:\n{table}"
