"""Segments: where a text is cut, and that pushes do not matter."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_model.text import MAX_SEGMENT_NUM_BYTES, Segmenter, segments

LIMIT = MAX_SEGMENT_NUM_BYTES
RUNS = st.tuples(st.sampled_from(["a", "é", "日", "😀", " ", "\n", "word ", "line\n"]), st.integers(1, 900))
TEXTS = st.lists(RUNS, max_size=8).map(lambda runs: "".join(piece * number for piece, number in runs))


@given(TEXTS, st.data())
@settings(max_examples=60, deadline=None)
def test_segments_do_not_depend_on_how_a_text_is_pushed(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    segmenter = Segmenter()
    pushed = []
    for start, stop in zip([0, *cuts], [*cuts, len(text)], strict=True):
        pushed += segmenter.push(text[start:stop])
    pushed += segmenter.flush()
    assert pushed == segments(text)
    assert segmenter.flush() == []


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_segments_join_to_the_text_and_none_is_empty_or_too_long(text: str) -> None:
    cut = segments(text)
    assert "".join(cut) == text
    assert all(0 < len(segment.encode()) <= LIMIT for segment in cut)


@given(TEXTS)
@settings(max_examples=30, deadline=None)
def test_a_segment_is_its_own_only_segment(text: str) -> None:
    assert all(segments(segment) == [segment] for segment in segments(text))


def test_characters_one_by_one_give_the_segments_of_the_whole() -> None:
    text = "one two\n\nthree " + "x" * 3000 + " four\r\n" + "é y " * 800
    segmenter = Segmenter()
    pushed = [segment for character in text for segment in segmenter.push(character)]
    assert pushed + segmenter.flush() == segments(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("\n", ["\n"]),
        ("a\n\nb", ["a\n", "\n", "b"]),
        ("a\r\nb", ["a\r\n", "b"]),
        ("a" * LIMIT, ["a" * LIMIT]),
        ("a" * (LIMIT - 1) + "\n" + "b", ["a" * (LIMIT - 1) + "\n", "b"]),
        ("a" * LIMIT + "\n", ["a" * LIMIT, "\n"]),
        ("a" * (LIMIT + 1), ["a" * LIMIT, "a"]),
        ("a b" + "c" * LIMIT, ["a", " b" + "c" * (LIMIT - 2), "c" * 2]),
        (" " + "a" * LIMIT, [" " + "a" * (LIMIT - 1), "a"]),
        ("é" * LIMIT, ["é" * (LIMIT // 2)] * 2),
        ("a" + "😀" * 512, ["a" + "😀" * 511, "😀"]),
        ("ab " * 683, ["ab " * 681 + "ab", " ab "]),
    ],
)
def test_a_text_is_cut_after_a_newline_else_before_the_last_space_in_reach_else_hard(
    text: str, expected: list[str]
) -> None:
    assert segments(text) == expected


def test_a_segment_is_given_as_soon_as_it_is_certain_and_the_rest_is_held() -> None:
    segmenter = Segmenter()
    assert segmenter.push("one\ntwo") == ["one\n"]
    assert segmenter.held == "two"
    assert segmenter.push("\n") == ["two\n"]
    assert segmenter.held == ""


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        segments("a\ud800b")
