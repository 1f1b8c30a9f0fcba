"""What the benches send and how they judge it."""

from functools import cache
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from atlas_model.text import Tokenizer, train_tokenizer
from atlas_model.training.documents import Question
from atlas_model.training.synthetic_prose import SyntheticProse
from atlas_model.training.tasks import Kind
from bench.recall.results import Answer, curves, summarise
from bench.workload import is_right, make_items, open_prose, parse_length, prompt_of


@cache
def tokenizer() -> Tokenizer:
    prose = SyntheticProse().passage(Random(7))
    return train_tokenizer((sentence.text for sentence in islice(prose, 400)), 400)


@pytest.mark.parametrize(("text", "length"), [("2k", 2000), ("128K", 128_000), ("1.5k", 1500), ("1m", 10**6), ("7", 7)])
def test_lengths_are_decimal(text: str, length: int) -> None:
    assert parse_length(text) == length


@pytest.mark.parametrize("text", ["", "k", "0", "-1k", "2g"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a length"):
        parse_length(text)


def test_documents_have_the_length_the_questions_and_the_seed_that_were_asked_for() -> None:
    items = make_items(tokenizer(), SyntheticProse(), [900, 1700], num_documents=2, num_questions=20, seed=3)
    assert [(item.length, item.number) for item in items] == [(900, 0), (900, 1), (1700, 0), (1700, 1)]
    for item in items:
        assert len(item.document.questions) == 20
        assert len({question.text for question in item.document.questions}) == 20
        assert abs(len(tokenizer().encode(item.document.text)) - item.length) < 0.1 * item.length
    assert len({item.document.text for item in items}) == 4
    again = make_items(tokenizer(), SyntheticProse(), [900, 1700], num_documents=2, num_questions=20, seed=3)
    assert again == items
    assert make_items(tokenizer(), SyntheticProse(), [900], 1, 20, seed=4)[0] != items[0]


def test_without_overwriting_every_fact_can_be_asked_about() -> None:
    (item,) = make_items(tokenizer(), SyntheticProse(), [900], 1, 20, seed=3, num_facts=20, overwrite_probability=0.0)
    assert len({question.text for question in item.document.questions}) == 20
    with pytest.raises(ValueError, match="too many"):
        make_items(tokenizer(), SyntheticProse(), [900], 1, 21, seed=3, num_facts=20, overwrite_probability=0.0)


def test_books_that_training_holds_out_come_first_and_any_others_will_do(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("The first book is here. It is short.\n")
    assert next(open_prose(tmp_path).passage(Random(0))).text in {"The first book is here.", "It is short."}
    (tmp_path / "sherlock_holmes.txt").write_text("Held out.\n")
    assert next(open_prose(tmp_path).passage(Random(0))).text == "Held out."


def test_a_prompt_has_about_the_tokens_that_were_asked_for() -> None:
    assert 300 <= len(tokenizer().encode(prompt_of(tokenizer(), SyntheticProse(), 300, "a"))) < 400


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("garden", "garden", True),
        (" The Garden.\nWhere is", "garden", True),
        ("4 7 1", "4 7 1", True),
        ("4 7 12", "4 7 1", False),
        ("garden or kitchen", "garden", False),
        ("", "garden", False),
    ],
)
def test_an_answer_is_right_when_it_is_the_expected_one_and_nothing_more(
    answer: str, expected: str, right: bool
) -> None:
    assert is_right(answer, Question("Where is John?", expected, Kind.LOCATION, 50)) is right


def test_accuracy_is_counted_by_length_condition_and_kind() -> None:
    def answer(length: int, condition: str, kind: str, right: bool) -> Answer:
        return Answer(length, 0, condition, kind, "?", "x", "y", right, chance=0.5 if kind == "code" else 0.25)

    answers = [
        answer(2000, "on", "code", True),
        answer(2000, "on", "code", False),
        answer(2000, "on", "location", True),
        answer(2000, "off", "code", False),
        answer(100, "on", "location", True),
    ]
    rows = [(row.length, row.condition, row.kind, row.accuracy.num_right, row.accuracy.n) for row in summarise(answers)]
    assert rows == [
        (100, "on", "all", 1, 1),
        (100, "on", "location", 1, 1),
        (2000, "on", "all", 2, 3),
        (2000, "on", "code", 1, 2),
        (2000, "on", "location", 1, 1),
        (2000, "off", "all", 0, 1),
        (2000, "off", "code", 0, 1),
    ]
    assert summarise(answers)[2].chance == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    shares = {condition: [(n, p.share) for n, p in points] for condition, points in curves(summarise(answers)).items()}
    assert shares == {"on": [(100, 1.0), (2000, pytest.approx(2 / 3))], "off": [(2000, 0.0)]}
