"""Facts to be remembered: where someone is, who has what, codes, attributes, favourites; each with question and answer.

Promises: a world is a function of its random generator; a fact that overwrites another has another answer; facts of
different keys never contradict each other. Leaves where the facts are told to `documents` and `episodes`.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from atlas_model.training.vocabulary import (
    ATTRIBUTE_THINGS,
    ATTRIBUTES,
    FAVOURITES,
    LOCKED_SIDES,
    LOCKED_THINGS,
    MOVES,
    NAMES,
    OBJECTS,
    PLACES,
    TAKES,
)


class Kind(StrEnum):
    """What a fact is about."""

    LOCATION = "location"
    POSSESSION = "possession"
    CODE = "code"
    ATTRIBUTE = "attribute"
    PREFERENCE = "preference"


ALL_KINDS = tuple(Kind)


class Key(NamedTuple):
    """What a fact gives a value to; `aspect` is empty where the kind has only one."""

    kind: Kind
    subject: str
    aspect: str = ""


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement, and the question that it answers until it is overwritten. `num_answers` answers are possible."""

    key: Key
    text: str
    question: str
    answer: str
    num_answers: int


class World:
    """Tells facts, each about a key that has none yet or overwriting one; knows the latest of every key."""

    def __init__(self, rng: random.Random, kinds: Sequence[Kind] = ALL_KINDS) -> None:
        self._rng = rng
        self._kinds = tuple(kinds)
        self._latest: dict[Key, Fact] = {}

    @property
    def latest(self) -> tuple[Fact, ...]:
        """The facts that hold now, by the age of their keys."""
        return tuple(self._latest.values())

    def tell(self, overwrite_probability: float = 0.0) -> Fact:
        """The next fact; with that probability it overwrites an earlier one (never the first fact)."""
        if self._latest and self._rng.random() < overwrite_probability:
            key = self._rng.choice(tuple(self._latest))
        else:
            key = self._new_key()
        fact = self._state(key)
        self._latest[key] = fact
        return fact

    def _new_key(self) -> Key:
        """A key without a fact. A world tells far fewer facts than there are keys, so drawing again is cheap."""
        for _ in range(10_000):
            kind = self._rng.choice(self._kinds)
            key = _KINDS[kind].draw_key(self._rng)
            if key not in self._latest:
                return key
        raise ValueError(f"no keys are left after {len(self._latest)} facts of the kinds {', '.join(self._kinds)}")

    def _state(self, key: Key) -> Fact:
        task = _KINDS[key.kind]
        old = self._latest.get(key)
        answer = task.draw_answer(self._rng, key)
        while old is not None and answer == old.answer:
            answer = task.draw_answer(self._rng, key)
        words = {
            "subject": key.subject,
            "aspect": key.aspect,
            "answer": answer,
            "move": self._rng.choice(MOVES),
            "take": self._rng.choice(TAKES),
        }
        return Fact(
            key=key,
            text=self._rng.choice(task.statements).format_map(words),
            question=self._rng.choice(task.questions).format_map(words),
            answer=answer,
            num_answers=task.num_answers(key),
        )


def chance_level(kind: Kind) -> float:
    """How often a guess among the kind's possible answers is right, averaged over its aspects."""
    keys = [Key(kind, "", aspect) for aspect in _KINDS[kind].aspects]
    return sum(1 / _KINDS[kind].num_answers(key) for key in keys) / len(keys)


class _Task(NamedTuple):
    """One kind's templates, and how its keys and answers are drawn."""

    statements: tuple[str, ...]
    questions: tuple[str, ...]
    aspects: tuple[str, ...]
    draw_key: Callable[[random.Random], Key]
    draw_answer: Callable[[random.Random, Key], str]
    num_answers: Callable[[Key], int]


def _draw_code(rng: random.Random, key: Key) -> str:
    return " ".join(rng.choice("0123456789") for _ in range(3))


_KINDS = {
    Kind.LOCATION: _Task(
        statements=(
            *("{subject} {move} the {answer}.",) * 4,
            "{subject} is in the {answer}.",
            "{subject} walked to the {answer}.",
            "Then {subject} {move} the {answer}.",
        ),
        questions=("Where is {subject}?",),
        aspects=("",),
        draw_key=lambda rng: Key(Kind.LOCATION, rng.choice(NAMES)),
        draw_answer=lambda rng, key: rng.choice(PLACES),
        num_answers=lambda key: len(PLACES),
    ),
    Kind.POSSESSION: _Task(
        statements=(
            *("{subject} {take} the {answer}.",) * 3,
            "{subject} has the {answer}.",
            "Now {subject} has the {answer}.",
        ),
        questions=("What does {subject} have?",),
        aspects=("",),
        draw_key=lambda rng: Key(Kind.POSSESSION, rng.choice(NAMES)),
        draw_answer=lambda rng, key: rng.choice(OBJECTS),
        num_answers=lambda key: len(OBJECTS),
    ),
    Kind.CODE: _Task(
        statements=(
            "The code of the {subject} is {answer}.",
            "The code of the {subject} is {answer}.",
            "The code for the {subject} is {answer}.",
            "The {subject} has the code {answer}.",
            "The {subject} opens with the code {answer}.",
        ),
        questions=("What is the code of the {subject}?", "What is the code for the {subject}?"),
        aspects=("",),
        draw_key=lambda rng: Key(Kind.CODE, f"{rng.choice(LOCKED_SIDES)} {rng.choice(LOCKED_THINGS)}"),
        draw_answer=_draw_code,
        num_answers=lambda key: 1000,
    ),
    Kind.ATTRIBUTE: _Task(
        statements=(
            "The {aspect} of the {subject} is {answer}.",
            "The {aspect} of the {subject} is {answer}.",
            "The {subject}'s {aspect} is {answer}.",
            "As for the {subject}, its {aspect} is {answer}.",
        ),
        questions=("What is the {aspect} of the {subject}?", "What is the {subject}'s {aspect}?"),
        aspects=tuple(ATTRIBUTES),
        draw_key=lambda rng: Key(Kind.ATTRIBUTE, rng.choice(ATTRIBUTE_THINGS), rng.choice(tuple(ATTRIBUTES))),
        draw_answer=lambda rng, key: rng.choice(ATTRIBUTES[key.aspect]),
        num_answers=lambda key: len(ATTRIBUTES[key.aspect]),
    ),
    Kind.PREFERENCE: _Task(
        statements=(
            "{subject}'s favourite {aspect} is {answer}.",
            "{subject}'s favourite {aspect} is {answer}.",
            "The favourite {aspect} of {subject} is {answer}.",
            "For {subject} the favourite {aspect} is {answer}.",
        ),
        questions=("What is {subject}'s favourite {aspect}?", "What is the favourite {aspect} of {subject}?"),
        aspects=tuple(FAVOURITES),
        draw_key=lambda rng: Key(Kind.PREFERENCE, rng.choice(NAMES), rng.choice(tuple(FAVOURITES))),
        draw_answer=lambda rng, key: rng.choice(FAVOURITES[key.aspect]),
        num_answers=lambda key: len(FAVOURITES[key.aspect]),
    ),
}
