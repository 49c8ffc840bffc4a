"""Errors as screens."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlorun.errors import ConfigError, ConfigErrors, RunError
from mlorun.report import named, render, show


def test_a_screen_says_what_where_what_was_seen_and_how_to_mend_it() -> None:
    error = ConfigError("a key is wrong", where="problems.a", seen="lrr: 1", fix="did you mean lr?")
    assert render(error).splitlines() == [
        "error: a key is wrong",
        "  where  problems.a",
        "  seen   lrr: 1",
        "  fix    did you mean lr?",
    ]


def test_what_an_error_does_not_know_has_no_line() -> None:
    assert render(RunError("it broke")) == "error: it broke"


def test_several_faults_stand_one_below_the_other_and_are_counted() -> None:
    text = render(ConfigErrors([ConfigError("one", where="a"), ConfigError("two", fix="b")]))
    assert text == "error: one\n  where  a\n\nerror: two\n  fix    b\n\n2 faults, nothing was run"


def test_an_unforeseen_error_is_one_line_and_its_traceback_goes_to_a_file(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyError("deep")

    with pytest.raises(KeyError) as caught:
        fail()
    error = named(caught.value, tmp_path)
    (log,) = tmp_path.iterdir()
    assert render(error) == f"error: KeyError: 'deep'\n  fix    the full traceback is in {log}"
    assert "in fail" in log.read_text()
    assert error.exit_code == 1


def test_a_screen_goes_to_standard_error_and_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    show(RunError("word " * 60))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
