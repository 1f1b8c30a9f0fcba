"""Answers, and what they amount to: accuracy by length, condition and kind of fact. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.plot import Point
from bench.report import Json
from bench.summary import Proportion, proportion

CONDITIONS = ("on", "off", "swapped")
ALL_KINDS = "all"


@dataclass(frozen=True, slots=True)
class Answer:
    """One question as it was asked and answered; `chance` is one over the number of possible answers."""

    length: int
    document: int
    condition: str
    kind: str
    question: str
    expected: str
    answer: str
    is_right: bool
    chance: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `chance` is the mean over its questions."""

    length: int
    condition: str
    kind: str
    accuracy: Proportion
    chance: float

    def to_json(self) -> Json:
        return {
            "length": self.length,
            "condition": self.condition,
            "kind": self.kind,
            "chance": self.chance,
            **asdict(self.accuracy),
        }

    def __str__(self) -> str:
        return f"{self.length:>9,} tokens  memory {self.condition:<8} {self.kind:<11} {self.accuracy}"


def summarise(answers: Sequence[Answer]) -> list[Row]:
    """Rows by length, then condition, then kind, the row of all kinds first."""
    groups: dict[tuple[int, int, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        for kind in (ALL_KINDS, answer.kind):
            groups[answer.length, CONDITIONS.index(answer.condition), kind].append(answer)
    order = sorted(groups, key=lambda key: (key[0], key[1], key[2] != ALL_KINDS, key[2]))
    return [
        _row(length, CONDITIONS[condition], kind, groups[length, condition, kind]) for length, condition, kind in order
    ]


def curves(rows: Sequence[Row]) -> dict[str, list[Point]]:
    """Accuracy over length by condition, all kinds together."""
    points: dict[str, list[Point]] = defaultdict(list)
    for row in rows:
        if row.kind == ALL_KINDS:
            points[row.condition].append((row.length, row.accuracy))
    return points


def _row(length: int, condition: str, kind: str, answers: Sequence[Answer]) -> Row:
    accuracy = proportion(sum(answer.is_right for answer in answers), len(answers))
    return Row(length, condition, kind, accuracy, sum(answer.chance for answer in answers) / len(answers))
