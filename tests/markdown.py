"""Commands, their printed output and files to write, as README.md and docs/ show them to a reader."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# docs/mistakes.md is written and checked by tests/test_screens.py: what it shows is wrong on purpose
DOCUMENTS = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("**/*.md")) if p.name != "mistakes.md")]
SUFFIXES = {"python": ".py", "yaml": ".yaml"}
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    document: str  # its path in the repository
    line: int  # of the opening fence
    language: str
    before: str  # the text from the fence before on
    text: str


@dataclass(frozen=True)
class Command:
    """A shell command that runs mlorun, and what is printed below it."""

    document: str
    line: int  # of its block
    words: tuple[str, ...]  # after `mlorun`
    output: str | None  # None where nothing is shown
    not_run: str | None  # why, where `<!-- not run: REASON -->` stands above the block

    def __str__(self) -> str:
        return " ".join(["mlorun", *self.words])

    @property
    def is_wrong(self) -> bool:
        """Whether it shows what a mistake looks like."""
        return self.output is not None and self.output.lstrip().startswith("error: ")


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    name = str(document.relative_to(ROOT)) if document.is_relative_to(ROOT) else document.name
    made: list[Block] = []
    before: list[str] = []
    inside: tuple[int, str, list[str]] | None = None
    for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), start=1):
        if inside is None and line.startswith("```"):
            inside = (number, line.removeprefix("```").strip(), [])
        elif inside is not None and line.rstrip() == "```":
            start, language, lines = inside
            made.append(Block(name, start, language, "\n".join(before).strip(), "\n".join(lines)))
            before, inside = [], None
        else:
            (before if inside is None else inside[2]).append(line)
    return made


def commands(document: Path) -> list[Command]:
    """Every command of a document that runs mlorun.

    They stand in blocks of `sh`, and after `$ ` in others, with their output below. A block without a language right
    below one of `sh` is the output of its last command.
    """
    made: list[Command] = []
    last: Block | None = None  # the block of sh right above
    for block in blocks(document):
        reason = match[1] if (match := _NOT_RUN.search(block.before)) else None
        if block.language == "sh":
            made += [
                Command(block.document, block.line, words, None, reason)
                for line in _logical_lines(block.text)
                for words in mlorun_words(line.removeprefix("$ "))
            ]
        elif block.text.startswith("$ "):
            for typed, output in _typed_and_printed(block.text):
                made += [
                    Command(block.document, block.line, words, output or None, reason) for words in mlorun_words(typed)
                ]
        elif not block.language and not block.before and last is not None and made and made[-1].line == last.line:
            above = made.pop()
            made.append(Command(above.document, above.line, above.words, block.text, above.not_run))
        last = block if block.language == "sh" else None
    return made


def files(document: Path) -> dict[str, str]:
    """Files that a reader is told to write: a block of python or yaml, its path in the text right before it."""
    written = {}
    for block in blocks(document):
        suffix = SUFFIXES.get(block.language)
        paths = re.findall(r"`([\w./-]+)`", block.before.rpartition("\n\n")[2])
        own = [path for path in paths if suffix and path.endswith(suffix) and path.startswith(("recipes/", "configs/"))]
        if own:
            written[own[0]] = block.text + "\n"
    return written


def mlorun_words(line: str) -> Iterator[tuple[str, ...]]:
    """The arguments of every mlorun in a line of shell: `A=b .venv/bin/mlorun x && uv run mlorun y` has two."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    for between, group in itertools.groupby(lexer, lambda word: set(word) <= set("();<>|&") and word != ""):
        words = [] if between else list(group)
        while words and (re.fullmatch(r"\w+=.*", words[0]) or words[0] in ("uv", "run", "nohup", "time")):
            words = words[1:]
        if words and Path(words[0]).name == "mlorun":
            yield tuple(words[1:])


def _logical_lines(text: str) -> list[str]:
    return re.sub(r"\\\n\s*", " ", text).splitlines()


def _typed_and_printed(text: str) -> Iterator[tuple[str, str]]:
    typed: str | None = None
    printed: list[str] = []
    for line in re.sub(r"(?m)^(\$ .*)\\\n\s*", r"\1", text).splitlines():
        if line.startswith("$ "):
            if typed is not None:
                yield typed, "\n".join(printed)
            typed, printed = line.removeprefix("$ "), []
        else:
            printed.append(line)
    if typed is not None:
        yield typed, "\n".join(printed)
