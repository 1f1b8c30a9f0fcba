"""Documents: prose with facts between its sentences, as plain text with the questions that it answers.

Promises: facts keep the order in which the world told them; `woven_text` is the one way from sentences to text, for
training and measuring; a document is a function of its random generator. Needs no torch. Leaves episodes to `episodes`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from atlas_model.text.tokenizer import Tokenizer
from atlas_model.training.prose import ProseSource, Sentence
from atlas_model.training.tasks import ALL_KINDS, Fact, Kind, World


class Woven(NamedTuple):
    """A sentence in its place: the text with the space before it, and whether it is prose or a fact (or a newline)."""

    text: str
    is_prose: bool


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask after a document, and the only right answer; a guess is right once in `num_answers`."""

    text: str
    answer: str
    kind: Kind
    num_answers: int


@dataclass(frozen=True, slots=True)
class Document:
    """A text, what it answers, and its size as one document's segments."""

    text: str
    questions: tuple[Question, ...]
    num_tokens: int


def weave(
    rng: random.Random, sentences: Sequence[Sentence], facts: Sequence[Fact], first_part: float = 1.0
) -> list[Woven]:
    """Put the facts between the sentences: sorted random gaps within the first part of them, a gap may take several.

    Sentences are joined by single spaces, with a newline where a paragraph of the prose ends.
    """
    num_gaps = round(len(sentences) * first_part) + 1
    gaps = sorted(rng.randrange(num_gaps) for _ in facts)
    woven: list[Woven] = []
    space = ""
    next_fact = 0
    for gap in range(len(sentences) + 1):
        while next_fact < len(facts) and gaps[next_fact] == gap:
            woven.append(Woven(space + facts[next_fact].text, is_prose=False))
            space = " "
            next_fact += 1
        if gap < len(sentences):
            sentence = sentences[gap]
            woven.append(Woven(space + sentence.text, is_prose=True))
            space = " "
            if sentence.ends_paragraph:
                woven.append(Woven("\n", is_prose=True))
                space = ""
    return woven


def woven_text(woven: Sequence[Woven]) -> str:
    """The text of a document."""
    return "".join(piece.text for piece in woven)


def question_of(fact: Fact) -> Question:
    """The question that a fact answers as long as it is the latest of its key."""
    return Question(fact.question, fact.answer, fact.key.kind, fact.num_answers)


def make_document(
    rng: random.Random,
    prose: ProseSource,
    tokenizer: Tokenizer,
    num_tokens: int,
    num_facts: int,
    *,
    num_questions: int | None = None,
    overwrite_probability: float = 0.0,
    first_part: float = 1.0,
    kinds: Sequence[Kind] = ALL_KINDS,
) -> Document:
    """A document of about `num_tokens` tokens (within a sentence) in which the world tells `num_facts` facts.

    The facts lie uniformly over the first part (a share of the sentences) of the text. Questions, in random order, are
    about `num_questions` of the keys, all when None, each answered by the latest fact of its key. With an overwrite
    probability there are fewer keys than facts. `ValueError` when there are fewer keys than questions.
    """
    world = World(rng, kinds)
    facts = [world.tell(overwrite_probability) for _ in range(num_facts)]
    asked = rng.sample(world.latest, len(world.latest) if num_questions is None else num_questions)
    missing = num_tokens - sum(len(tokenizer.encode(" " + fact.text)) for fact in facts)
    sentences: list[Sentence] = []
    passage = prose.passage(rng)
    while missing > 0:
        sentence = next(passage)
        sentences.append(sentence)
        missing -= len(tokenizer.encode(" " + sentence.text)) + sentence.ends_paragraph
    text = woven_text(weave(rng, sentences, facts, first_part))
    return Document(text, tuple(map(question_of, asked)), len(tokenizer.encode(text)))
