"""Corpora: folders with weights, of which some files are held out."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest

from atlas_model.config import ConfigError
from atlas_model.training.corpora import CorpusConfig, parse_corpus, read_corpora, read_held_out
from atlas_model.training.prose import CorpusError, ProseSource
from atlas_model.training.recipe import load_recipe
from tests.atlas_model.test_training_recipe import RECIPE


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Two corpora; the sentences of each file are the file's name."""
    for name in ("books/novel", "books/secret", "news/today"):
        path = tmp_path / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{path.stem}.\n" * 20, encoding="utf-8")
    return tmp_path


def drawn(prose: ProseSource, num_passages: int) -> list[str]:
    """The first sentence of each passage."""
    rng = random.Random(0)
    return [next(islice(prose.passage(rng), 1)).text for _ in range(num_passages)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("books", CorpusConfig("books")),
        ("3:books", CorpusConfig("books", 3.0)),
        ("0.5:/path/to:books", CorpusConfig("/path/to:books", 0.5)),
        ("./a:b", CorpusConfig("./a:b")),
        ("7", CorpusConfig("7")),
    ],
)
def test_a_corpus_is_a_folder_or_a_weight_and_a_folder(text: str, expected: CorpusConfig) -> None:
    assert parse_corpus(text) == expected


@pytest.mark.parametrize("text", ["0:books", "-1:books", "inf:books", "nan:books", "2:"])
def test_a_weight_or_folder_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"weight of books must be positive|directory must not be empty"):
        parse_corpus(text)


def test_passages_are_drawn_by_weight_and_the_same_ones_again(folders: Path) -> None:
    corpora = [CorpusConfig(str(folders / "books"), 3.0, ("secret.txt",)), CorpusConfig(str(folders / "news"))]
    sentences = drawn(read_corpora(corpora), 2000)
    assert set(sentences) == {"novel.", "today."}
    assert 0.72 < sentences.count("novel.") / 2000 < 0.78
    assert sentences[:100] == drawn(read_corpora(corpora), 100)


def test_held_out_text_is_that_of_the_corpora_that_have_any(folders: Path) -> None:
    corpora = [CorpusConfig(str(folders / "books"), 1.0, ("secret.txt",)), CorpusConfig(str(folders / "news"))]
    assert set(drawn(read_held_out(corpora), 20)) == {"secret."}
    with pytest.raises(CorpusError, match=r"no held-out text in .*news"):
        read_held_out(corpora[1:])


def test_a_corpus_that_is_not_there_is_named(folders: Path) -> None:
    with pytest.raises(CorpusError, match="poems"):
        read_corpora([CorpusConfig(str(folders / "books")), CorpusConfig(str(folders / "poems"))])


def test_a_recipe_names_its_corpora_from_where_it_lies(folders: Path) -> None:
    corpora = (
        '[[corpora]]\ndirectory = "books"\nheld_out = ["secret.txt"]\n[[corpora]]\ndirectory = "news"\nweight = 2\n'
    )
    (folders / "recipe.toml").write_text(RECIPE + corpora, encoding="utf-8")
    books, news = load_recipe(folders / "recipe.toml").corpora
    assert books == CorpusConfig(str(folders / "books"), 1.0, ("secret.txt",))
    assert (news.directory, news.weight) == (str(folders / "news"), 2.0)


def test_a_file_to_hold_out_that_is_not_there_is_named(folders: Path) -> None:
    corpus = CorpusConfig(str(folders / "books"), held_out=("secret.txt", "secrets.txt"))
    with pytest.raises(CorpusError, match=r"books has no 'secrets\.txt'"):
        read_corpora([corpus])
