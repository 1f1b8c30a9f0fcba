"""What the benches send: documents that hide facts, their questions, and prompts of a given length.

The generators are the ones that training uses, so that "length" means the same there and here: tokens of the model.
Promises: a workload is a function of its seed; the tasks come in all kinds, and some facts are overwritten later in
the document, the latest wins.
"""

from __future__ import annotations

import argparse
import math
import random
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from atlas_model.text import Tokenizer, find_tokenizer, load_tokenizer
from atlas_model.training.documents import Document, Question, make_document
from atlas_model.training.prose import CorpusError, Prose, ProseSource
from atlas_model.training.synthetic_prose import SyntheticProse

OVERWRITE_PROBABILITY = 0.25
# So many facts per question that enough different keys remain when a quarter of the facts overwrite others.
FACTS_PER_QUESTION = 1.6
MAX_TRIES = 100


@dataclass(frozen=True, slots=True)
class Item:
    """A document with its place in the workload: the nominal length in tokens and its number among those."""

    length: int
    number: int
    document: Document


class NotALengthError(argparse.ArgumentTypeError, ValueError):
    """A parser of arguments shows its text, as it is, with the option's name."""


def parse_length(text: str) -> int:
    """`2k` is 2,000 tokens, `1m` a million, a bare number itself. Raises NotALengthError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([km]?)", text.strip().lower())
    length = 0 if match is None else round(float(match[1]) * {"": 1, "k": 1_000, "m": 1_000_000}[match[2]])
    if length < 1:
        raise NotALengthError(f"not a length: {text!r}")
    return length


def parse_counts(text: str) -> list[int]:
    """`1,8,2k`, each as `parse_length` reads it. Raises NotALengthError."""
    return [parse_length(item) for item in text.split(",")]


def open_prose(corpus: Path | None) -> ProseSource:
    """The books of a corpus that training holds out, or all when it has none of those; without a corpus, a grammar."""
    if corpus is None:
        return SyntheticProse()
    try:
        return Prose(corpus, validation=True)
    except CorpusError:
        return Prose(corpus, held_out=())


def make_items(
    tokenizer: Tokenizer,
    prose: ProseSource,
    lengths: list[int],
    num_documents: int,
    num_questions: int,
    seed: int,
    *,
    num_facts: int | None = None,
    overwrite_probability: float = OVERWRITE_PROBABILITY,
) -> list[Item]:
    """`num_documents` documents of each length, each with `num_questions` questions about `num_facts` facts.

    Raises ValueError when there are more questions than facts that hold.
    """
    facts = math.ceil(FACTS_PER_QUESTION * num_questions) if num_facts is None else num_facts

    def document(length: int, number: int) -> Document:
        for attempt in range(MAX_TRIES):
            # By chance so many facts may overwrite others that fewer keys than questions are left: try again.
            with suppress(ValueError):
                return make_document(
                    random.Random(f"{seed}/{length}/{number}/{attempt}"),
                    prose,
                    tokenizer,
                    length,
                    facts,
                    num_questions=num_questions,
                    overwrite_probability=overwrite_probability,
                )
        raise ValueError(f"{num_questions} questions are too many for a document of {facts} facts")

    return [Item(length, number, document(length, number)) for length in lengths for number in range(num_documents)]


def is_right(answer: str, question: Question) -> bool:
    """The whole answer, up to its first full stop or newline, is the expected one; case and article do not matter."""
    return _normalise(answer) == _normalise(question.answer)


def _normalise(answer: str) -> str:
    words = answer.strip().lower().partition("\n")[0].partition(".")[0].split()
    return " ".join(words[1:] if words[:1] == ["the"] else words)


def prompt_of(tokenizer: Tokenizer, prose: ProseSource, num_tokens: int, seed: str) -> str:
    """Prose of about `num_tokens` tokens, to ask about nothing: load needs text of a length, not a meaning."""
    rng = random.Random(seed)
    sentences: list[str] = []
    missing = num_tokens
    for sentence in prose.passage(rng):
        sentences.append(sentence.text)
        missing -= len(tokenizer.encode(" " + sentence.text))
        if missing <= 0:
            break
    return " ".join(sentences)


def open_prompts(model: Path, corpus: Path | None, seed: int) -> Callable[[int, str], str]:
    """`prompt_of` with a checkpoint folder's tokenizer and `open_prose(corpus)`: from a length and a name to a text."""
    tokenizer, prose = load_tokenizer(find_tokenizer(model)), open_prose(corpus)
    return lambda num_tokens, name: prompt_of(tokenizer, prose, num_tokens, f"{seed}/{name}")
