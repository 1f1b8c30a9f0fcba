"""The text that facts hide in: endless consecutive sentences from a folder of books.

Promises: a passage is a function of its random generator and never ends; held-out files and the others are never read
together; sentences joined by single spaces, with a newline where a paragraph ends, are lines of the book. Leaves facts
and tokens to others; `synthetic_prose` is the source that needs no corpus.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple, Protocol

HELD_OUT = ("sherlock_holmes.txt", "wuthering_heights.txt")

_MAX_RUN_NUM_SENTENCES = 5_000
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’)]*(?: +)(?=[\"'“‘(]*[A-Z0-9])")
_NO_SENTENCE_END = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Messrs|Esq|No|Capt|Col|Gen|Rev|Prof|Hon)|\b[A-Z])\.$")


class CorpusError(ValueError):
    """A folder without the text that is asked of it."""


class Sentence(NamedTuple):
    """A sentence of prose; whether a newline, rather than a space, follows it."""

    text: str
    ends_paragraph: bool


class ProseSource(Protocol):
    """Anything that gives endless prose."""

    def passage(self, rng: random.Random) -> Iterator[Sentence]:
        """Endless sentences in order, from a random place."""
        ...


class Prose:
    """The sentences of every `.txt` file below a folder, one paragraph per line.

    Either the held-out files (`validation`) or all others.
    """

    def __init__(self, directory: Path, held_out: Sequence[str] = HELD_OUT, validation: bool = False) -> None:
        """Read the files; `CorpusError` when none is left to read, or one is no UTF-8."""
        paths = sorted(path for path in Path(directory).rglob("*.txt") if (path.name in held_out) == validation)
        self.books = [book for path in paths if (book := _sentences_of(_read(path)))]
        if not self.books:
            wanted = f"one of {', '.join(held_out)}" if validation else "a .txt file that is not held out"
            raise CorpusError(f"no text in {directory}: it needs {wanted}")
        self._cumulative = list(accumulate(len(book) for book in self.books))

    def passage(self, rng: random.Random) -> Iterator[Sentence]:
        """Consecutive sentences from a random place, each sentence of the corpus equally likely to be the first.

        After 5,000 sentences, or at the book's end, it goes on at another random place.
        """
        while True:
            place = rng.randrange(self._cumulative[-1])
            number = bisect_right(self._cumulative, place)
            book = self.books[number]
            start = place - self._cumulative[number] + len(book)
            yield from book[start : start + _MAX_RUN_NUM_SENTENCES]


class WeightedProse:
    """Passages of several sources; how often one is of each is as its weight to the sum of all."""

    def __init__(self, sources: Sequence[tuple[ProseSource, float]]) -> None:
        self._sources = [source for source, _ in sources]
        self._cumulative = list(accumulate(weight for _, weight in sources))

    def passage(self, rng: random.Random) -> Iterator[Sentence]:
        """A passage that is wholly of one of them."""
        (source,) = rng.choices(self._sources, cum_weights=self._cumulative)
        return source.passage(rng)


def split_sentences(line: str) -> list[str]:
    """A simple splitter: after a full stop, question or exclamation mark, except after titles and initials."""
    sentences: list[str] = []
    start = 0
    for match in _SENTENCE_END.finditer(line):
        candidate = line[start : match.end()].strip(" ")
        if candidate and not _NO_SENTENCE_END.search(candidate):
            sentences.append(candidate)
            start = match.end()
    if rest := line[start:].strip(" "):
        sentences.append(rest)
    return sentences


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is no UTF-8 text") from error


def _sentences_of(text: str) -> list[Sentence]:
    sentences: list[Sentence] = []
    for line in text.split("\n"):
        parts = split_sentences(" ".join(line.split()))
        sentences.extend(Sentence(part, i == len(parts) - 1) for i, part in enumerate(parts))
    return sentences
