"""Prose: sentences that are the book's, in order, and books that are held out."""

import random
from itertools import islice, pairwise
from pathlib import Path

import pytest

from atlas_model.training.prose import CorpusError, Prose, Sentence, WeightedProse, split_sentences
from atlas_model.training.synthetic_prose import SyntheticProse

BOOK = "It was late. Mr. Brown slept; J. Smith did not!\n\n“Who is it?” he asked. Nobody  answered.\n"
SENTENCES = [
    Sentence("It was late.", False),
    Sentence("Mr. Brown slept; J. Smith did not!", True),
    Sentence("“Who is it?” he asked.", False),
    Sentence("Nobody answered.", True),
]


def write_books(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "one.txt").write_text(BOOK, encoding="utf-8")
    (folder / "two.txt").write_text("Held out. Quite so.\n", encoding="utf-8")
    (folder / "notes.md").write_text("Not a book.", encoding="utf-8")


def test_a_book_is_its_sentences_and_where_its_paragraphs_end(tmp_path: Path) -> None:
    write_books(tmp_path)
    assert Prose(tmp_path, held_out=("two.txt",)).books == [SENTENCES]


def test_held_out_books_are_read_only_for_validation(tmp_path: Path) -> None:
    write_books(tmp_path)
    validation = Prose(tmp_path, held_out=("two.txt",), validation=True)
    assert validation.books == [[Sentence("Held out.", False), Sentence("Quite so.", True)]]


def test_a_passage_is_consecutive_and_goes_on_elsewhere_at_the_books_end(tmp_path: Path) -> None:
    write_books(tmp_path)
    prose = Prose(tmp_path, held_out=("two.txt",))
    starts = set()
    for seed in range(40):
        passage = list(islice(prose.passage(random.Random(seed)), 9))
        starts.add(passage[0])
        for now, then in pairwise(passage):
            assert now == SENTENCES[-1] or then == SENTENCES[SENTENCES.index(now) + 1]
    assert starts == set(SENTENCES)


def test_a_folder_without_the_text_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="not held out"):
        Prose(tmp_path)
    write_books(tmp_path)
    with pytest.raises(CorpusError, match=r"sherlock_holmes\.txt"):
        Prose(tmp_path, validation=True)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(CorpusError, match=r"latin\.txt is no UTF-8"):
        Prose(tmp_path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("no end", ["no end"]),
        ("One. Two? Three! Four", ["One.", "Two?", "Three!", "Four"]),
        ('"Yes." "No," said St. John.', ['"Yes."', '"No," said St. John.']),
        ("He paid 3.50. 7 were left... and so on.", ["He paid 3.50.", "7 were left... and so on."]),
        ("Mrs. A. Jones went. She", ["Mrs. A. Jones went.", "She"]),
    ],
)
def test_a_line_is_split_after_sentences_but_not_after_titles_and_initials(line: str, expected: list[str]) -> None:
    assert split_sentences(line) == expected


def test_synthetic_prose_varies_and_is_told_by_its_seed() -> None:
    passage = list(islice(SyntheticProse().passage(random.Random(1)), 2000))
    assert passage == list(islice(SyntheticProse().passage(random.Random(1)), 2000))
    assert len({sentence.text for sentence in passage}) > 1900
    assert all("{" not in sentence.text and sentence.text[-1] in '.!?"' for sentence in passage)
    assert 2 <= sum(not sentence.ends_paragraph for sentence in passage) / 400 <= 5


def test_weighted_prose_takes_whole_passages_of_each_source_at_its_weight(tmp_path: Path) -> None:
    write_books(tmp_path)
    prose = Prose(tmp_path, held_out=("two.txt",))
    weighted = WeightedProse([(SyntheticProse(), 7.0), (prose, 3.0)])
    rng, again = random.Random(0), random.Random(0)
    passages = [list(islice(weighted.passage(rng), 5)) for _ in range(1000)]
    from_the_book = [[sentence in SENTENCES for sentence in passage] for passage in passages]
    assert all(len(set(passage)) == 1 for passage in from_the_book)
    assert 250 <= sum(passage[0] for passage in from_the_book) <= 350
    assert passages[:50] == [list(islice(weighted.passage(again), 5)) for _ in range(50)]
