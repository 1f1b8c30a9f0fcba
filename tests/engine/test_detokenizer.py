from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from engine.sampling.detokenizer import Detokenizer


def in_pieces(data: bytes, cuts: list[int]) -> list[str]:
    detokenizer = Detokenizer()
    borders = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    pieces = [detokenizer.push(data[a:b]) for a, b in pairwise(borders)]
    return [*pieces, detokenizer.finish()]


@given(st.text(), st.lists(st.integers(0, 1000)))
def test_text_is_the_same_however_its_bytes_are_cut_and_no_piece_holds_half_a_character(
    text: str, cuts: list[int]
) -> None:
    pieces = in_pieces(text.encode(), cuts)
    assert "".join(pieces) == text
    assert pieces[-1] == ""
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


@given(st.binary(), st.lists(st.integers(0, 1000)))
def test_any_bytes_give_what_the_whole_would_give(data: bytes, cuts: list[int]) -> None:
    assert "".join(in_pieces(data, cuts)) == data.decode("utf-8", errors="replace")


def test_a_character_leaves_with_its_last_byte() -> None:
    detokenizer = Detokenizer()
    assert [detokenizer.push(bytes([byte])) for byte in "é🦉".encode()] == ["", "é", "", "", "", "🦉"]


def test_a_character_that_the_end_cuts_short_becomes_one_replacement_once() -> None:
    detokenizer = Detokenizer()
    assert detokenizer.push("🦉".encode()[:3]) == ""
    assert detokenizer.finish() == "\ufffd"
    assert detokenizer.finish() == ""
