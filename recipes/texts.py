"""Texts without a download: what ships with Python, and sentences of a small grammar. All as bytes."""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path

from mlorun.errors import DataError

ONSETS, VOWELS = "bdfgklmnprstvz", "aeiou"


def python_code() -> bytes:
    """The source of the standard library's top-level modules, one after the other, by name.

    It differs between versions of Python. Raises DataError where an installation has no sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata has the paths of the machine on which Python was built
    files = sorted(path for path in folder.glob("*.py") if not path.name.startswith("_sysconfigdata"))
    if not files:
        raise DataError(
            "this Python comes without the source of its standard library",
            where=str(folder),
            fix="data=grammar_text makes its text on the spot",
        )
    return b"".join(path.read_bytes() for path in files)


def python_documentation() -> bytes:
    """The pages of Python's `help()` on the language, by name; paragraphs that several pages share come once.

    They differ between versions of Python. Raises DataError where an installation leaves them out.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError(
            "this Python comes without the pages of help()",
            where="pydoc_data.topics",
            fix="leave documentation out of data.sources; data=grammar_text makes its text on the spot",
        ) from None
    paragraphs = (paragraph for name in sorted(topics) for paragraph in topics[name].split("\n\n"))
    return "\n\n".join(dict.fromkeys(paragraphs)).encode()


def grammar_sentences(seed: int, size: int) -> bytes:
    """At least `size` bytes of sentences over made-up words: noun phrase, verb, noun phrase. The same on any machine.

    A noun phrase is an article, up to two adjectives and a noun; the article's vowel is the noun's last.
    """
    draw = random.Random(seed)

    def word(syllables: int) -> str:
        return "".join(draw.choice(ONSETS) + draw.choice(VOWELS) for _ in range(syllables))

    nouns, adjectives, verbs = ([word(n) + end for _ in range(20)] for n, end in ((2, ""), (1, "sh"), (2, "t")))

    def noun_phrase() -> str:
        noun = draw.choice(nouns)
        return " ".join(["l" + noun[-1], *draw.choices(adjectives, k=draw.randrange(3)), noun])

    sentences: list[str] = []
    written = 0
    while written < size:
        sentences.append(f"{noun_phrase()} {draw.choice(verbs)} {noun_phrase()}. ")
        written += len(sentences[-1])
    return "".join(sentences).encode()
