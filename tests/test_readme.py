"""README.md and docs/ tell the truth: their commands compose, print what they are said to print, and their files train.

A command with its output below it is run, and the two compared: times, sizes, run folders and progress left out,
numbers to a twentieth, and a line `...` for any lines. `python -m pytest tests/test_readme.py -m slow` runs those too
that need MNIST (MLORUN_DATA) or long. `<!-- not run: REASON -->` above a block leaves its output alone.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

import mlorun
from mlorun.cli import VERBS, main
from mlorun.commands.check import check_graph
from mlorun.config.compose import expanded, prepare
from mlorun.errors import ConfigError
from mlorun.restart import CHANGEABLE
from mlorun.sweeps.resume import OF_A_SWEEP
from tests.markdown import DOCUMENTS, ROOT, Command, blocks, commands, files, mlorun_words

COMMANDS = [command for document in DOCUMENTS for command in commands(document)]
SHOWN = [command for command in COMMANDS if command.output]
EXPERIMENTS = [
    (document, Path(path).stem)
    for document in DOCUMENTS
    for path in files(document)
    if Path(path).parent == Path("configs/experiment")
]
LONG = 20.0  # seconds
CHEAP = ("ls",)  # run, not only composed
MOST = 30  # of a sweep's jobs are composed


def place(command: Command) -> str:
    return f"{command.document}:{command.line} {command}"


def write_files(document: Path) -> None:
    """What the document tells its reader to write, in the working folder."""
    for name, text in files(document).items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; of a single run, its own."""
    prepare()
    choices = []
    for override in OverridesParser.create().parse_overrides(expanded(overrides)):
        if override.is_sweep_override():
            choices.append([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([str(override.input_line)])
    return map(list, itertools.islice(itertools.product(*choices), MOST))


@pytest.mark.parametrize("command", [one for one in COMMANDS if not one.is_wrong], ids=place)
@pytest.mark.usefixtures("empty_folder")
def test_every_command_that_is_shown_composes(command: Command) -> None:
    write_files(ROOT / command.document)
    verb = command.words[0] if command.words and command.words[0].isalpha() else None
    assert verb is None or verb in VERBS, f"there is no verb {verb}"
    overrides = [word for word in command.words if is_override(word)]
    placeholders = [word for word in overrides if re.search(r"(^|[=.@])[A-Z]{2,}\b", word)]
    if not command.words or verb in CHEAP or "--help" in command.words:
        assert main(list(command.words)) == 0
    elif verb == "rerun":
        assert mlorun.compose(["experiment=mwn_digits", *overrides])
    elif verb == "resume":
        assert all(word.startswith((*CHANGEABLE, *OF_A_SWEEP)) for word in overrides)
    elif overrides and not placeholders:
        try:
            for job in jobs(overrides):
                check_graph(mlorun.compose(job))
        except ConfigError:
            # it may be there to show what check says of a mistake
            if verb != "check":
                raise


@pytest.mark.parametrize(
    "module",
    sorted(
        {
            name
            for document in DOCUMENTS
            for block in blocks(document)
            for name in re.findall(r"python -m (tests[\w.]*)", f"{block.before}\n{block.text}")
        }
    ),
)
def test_every_module_of_the_tests_that_a_document_runs_is_there(module: str) -> None:
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("command", [pytest.param(one, marks=pytest.mark.slow) for one in SHOWN], ids=place)
@pytest.mark.usefixtures("empty_folder")
def test_a_command_prints_what_it_is_said_to_print(
    command: Command,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert command.output is not None
    if command.not_run:
        pytest.skip(command.not_run)
    asked = "slow" in request.config.getoption("-m").split() and "not" not in request.config.getoption("-m").split()
    if (took := printed_seconds(command.output)) > LONG and not asked:
        pytest.skip(f"takes {took:.0f} s; run with -m slow")
    if "mnist" in str(command):
        if not asked:
            pytest.skip("needs MNIST; run with -m slow")
        if "MLORUN_DATA" not in os.environ:
            pytest.skip("needs MNIST: set MLORUN_DATA")
    monkeypatch.setenv("COLUMNS", "200")
    write_files(ROOT / command.document)
    assert (main(list(command.words)) == 2) == command.is_wrong
    printed = capsys.readouterr()
    assert_same(printed.out + printed.err, command.output)


@pytest.mark.parametrize(("document", "name"), EXPERIMENTS, ids=lambda value: getattr(value, "name", value))
@pytest.mark.usefixtures("empty_folder")
def test_an_experiment_that_a_reader_writes_trains(document: Path, name: str) -> None:
    write_files(document)
    assert main([f"experiment={name}", "engine.train_iters=4", "threads=1"]) == 0
    assert (Path("runs") / name / "latest" / "result.json").is_file()


def test_readme_has_commands_with_their_output_and_an_experiment_to_write() -> None:
    readme = [command for command in COMMANDS if command.document == "README.md"]
    assert len(readme) > 5
    assert [command for command in readme if command.output and not command.is_wrong]
    assert "README.md" in [document.name for document, _ in EXPERIMENTS]


# what differs between two runs, or two machines, and is no result
_MEASURED = (
    (r"\b\d{8}-\d{6}-\d+\b", "RUN_ID"),
    (r"\b\d+:\d\d(:\d\d)?\b", "TIME"),
    (r"\b[\d,.]+ (ms|s|min|h|steps/s|MB|lower gradients)(?!\w)", "MEASURED"),
)
_PROGRESS = re.compile(r"step [\d,]+ / [\d,]+  (?!evaluation of)")
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")


def plain(text: str) -> str:
    """One line of words, without what is measured; lines of a table are one dash."""
    text = "\n".join(line for line in text.splitlines() if not _PROGRESS.match(line))
    for pattern, word in _MEASURED:
        text = re.sub(pattern, word, text)
    return " ".join(re.sub(r"[─━]+", "─", text).split())


def assert_same(printed: str, shown: str) -> None:
    """Raise AssertionError where a document shows something else than what is printed."""
    pieces = [plain(piece) for piece in re.split(r"(?m)^\s*\.\.\.\s*$", shown)]
    got = plain(printed)
    pattern = ".*?".join(_NUMBER.sub("#", piece).replace("#", "\0") for piece in pieces)
    pattern = re.escape(pattern).replace(re.escape(".*?"), ".*?").replace(re.escape("\0"), f"({_NUMBER.pattern})")
    match = re.fullmatch(pattern.replace(r"\ ", " "), got)
    assert match, f"printed:\n{got}\n\nshown:\n{' ... '.join(pieces)}"
    expected = [number for piece in pieces for number in _NUMBER.findall(piece)]
    for one, other in zip(match.groups(), expected, strict=True):
        assert near(one, other), f"{one} is printed, and {other} is shown\nprinted:\n{got}"


def near(one: str, other: str) -> bool:
    """Equal but for a twentieth, the last digit that is shown, or rounding errors below 1e-6."""
    a, b = (float(text.replace(",", "")) for text in (one, other))
    if not one.replace(",", "").lstrip("+-").isdigit() and max(abs(a), abs(b)) < 1e-6:
        return True
    mantissa, _, exponent = other.partition("e")
    decimals = len(mantissa.partition(".")[2])
    last_digit = 10.0 ** (int(exponent or 0) - decimals) if "." in mantissa or exponent else 0.0
    return math.isclose(a, b, rel_tol=0.05, abs_tol=last_digit)


def printed_seconds(output: str) -> float:
    """How long a command took, by its own words; 0 where it does not say."""
    found = re.search(r"(?m)(?:^time\s+|, in )(?:(\d+):)?([\d.]+)(?: s)?\b", output)
    return 60.0 * float(found[1] or 0) + float(found[2]) if found else 0.0


def test_only_what_is_measured_may_differ() -> None:
    shown = "step 9 / 10  evaluation of a  loss 0.50\ntime  3.4 s\n──\nruns/x/20260101-101010-123\n"
    assert_same("step 9 / 10  evaluation of a  loss 0.51\ntime   99 s\n─────\nruns/x/20270101-101010-1", shown)
    assert_same("a\nb\nc 1\nd", "a\n...\nd")
    for other in (
        "step 9 / 10  evaluation of a  loss 0.70\ntime  3.4 s\n──\nruns/x/20260101-101010-123\n",
        "step 8 / 10  evaluation of a  loss 0.50\ntime  3.4 s\n──\nruns/x/20260101-101010-123\n",
        "step 9 / 10  evaluation of b  loss 0.50\ntime  3.4 s\n──\nruns/x/20260101-101010-123\n",
    ):
        with pytest.raises(AssertionError):
            assert_same(other, shown)


def test_commands_are_read_as_a_shell_would(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "```sh\npip install . && A=b .venv/bin/mlorun x=1 \\\n  'y=[1,2]'  # a comment\n```\n```\nout\n```\n"
        "<!-- not run: too large -->\n```\n$ uv run mlorun ls\none\n$ ls\n```\n"
        "Put this in `configs/experiment/mine.yaml`:\n```yaml\nname: mine\n```\n"
    )
    first, second = commands(document)
    assert (first.words, first.output, first.not_run) == (("x=1", "y=[1,2]"), "out", None)
    assert (second.words, second.output, second.not_run) == (("ls",), "one", "too large")
    assert files(document) == {"configs/experiment/mine.yaml": "name: mine\n"}
    assert list(mlorun_words("echo mlorun  # and; mlorun ls")) == []
