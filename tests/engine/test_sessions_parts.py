"""The parts of the session layer that need no model: documents, stored answers, copies in memory."""

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import IdempotencyMismatch, InvalidUnicode, StateCorrupt
from engine.sessions.document_reader import DocumentPosition, DocumentReader
from engine.sessions.host_copies import HostCopies, LoadedSession
from engine.sessions.stored_turns import (
    MAX_NUM_BYTES,
    MAX_TURNS,
    RequestIdentity,
    StoredDocument,
    StoredTurn,
    StoredTurns,
)
from engine.stores.base import Generation, Head, SessionKey
from tests.atlas_model.tokenizers import small_tokenizer

TEXT = st.text(st.sampled_from("ab \n😀é\t0"), min_size=1, max_size=400) | st.text(max_size=200)


def read(pieces: Iterable[bytes], position: DocumentPosition | None = None) -> tuple[list[int], DocumentPosition]:
    reader = DocumentReader(small_tokenizer(), position or DocumentPosition())
    for piece in pieces:
        reader.push(piece)
    reader.finish()
    token_ids = reader.take(reader.num_tokens)
    assert reader.num_tokens == 0
    return token_ids, reader.position


@given(TEXT, st.lists(st.integers(0, 1000), max_size=8))
def test_the_pieces_of_a_document_change_neither_tokens_nor_digest(text: str, cuts: list[int]) -> None:
    raw = text.encode()
    borders = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
    pieces = [raw[start:end] for start, end in itertools.pairwise(borders)]
    assert read(pieces) == read([raw])
    assert read(pieces)[0] == small_tokenizer().encode(text)


@given(TEXT, st.integers(1, 40))
def test_a_document_taken_up_where_it_was_left_reads_the_same(text: str, num_tokens: int) -> None:
    raw = text.encode()
    whole, end = read([raw])
    reader = DocumentReader(small_tokenizer(), DocumentPosition())
    reader.push(raw)
    before = reader.take(num_tokens)
    after, resumed_end = read([raw[reader.position.offset :]], reader.position)
    assert before + after == whole
    assert resumed_end == end


def test_taking_stops_at_a_segments_border_at_or_behind_the_wanted_number() -> None:
    reader = DocumentReader(small_tokenizer(), DocumentPosition())
    reader.push(b"one two\nthree four\nfive\n")
    total = reader.num_tokens
    taken = reader.take(1)
    assert reader.position.offset == len(b"one two\n")
    assert len(taken) + reader.num_tokens == total


def test_the_digest_tells_documents_of_one_length_apart() -> None:
    assert read([b"a\nb\n"])[1].digest != read([b"b\na\n"])[1].digest


@pytest.mark.parametrize("raw", [b"\xff", b"ok \xed\xa0\x80", b"cut \xe2\x82", b"\xc0\xaf"])
def test_what_is_not_utf8_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidUnicode):
        read([raw])


def turn(version: int, key: str | None = None, request_digest: str = "d") -> StoredTurn:
    return StoredTurn(version, key, request_digest, {"id": version}, {})


def test_a_known_key_gives_the_stored_turn_and_another_request_under_it_is_refused() -> None:
    stored = StoredTurns().with_turn(turn(1, "k", "d1")).with_turn(turn(2, None, "d2"))
    assert stored.find_turn(2, RequestIdentity("d1", "k")) == turn(1, "k", "d1")
    with pytest.raises(IdempotencyMismatch):
        stored.find_turn(2, RequestIdentity("d2", "k"))
    assert stored.find_turn(2, RequestIdentity("d1", "other")) is None


def test_a_retry_without_a_key_is_the_last_commit_or_nothing() -> None:
    stored = StoredTurns().with_turn(turn(1, None, "d1")).with_turn(turn(2, None, "d2"))
    assert stored.find_turn(2, RequestIdentity("d2", None, is_retry=True)) == turn(2, None, "d2")
    assert stored.find_turn(2, RequestIdentity("d2", None)) is None
    assert stored.find_turn(2, RequestIdentity("d1", None, is_retry=True)) is None
    # A document was committed since: this is a new turn.
    assert stored.find_turn(3, RequestIdentity("d2", None, is_retry=True)) is None


def test_only_the_last_turns_are_stored_and_bytes_bring_them_back() -> None:
    stored = StoredTurns()
    for version in range(1, MAX_TURNS + 3):
        stored = stored.with_turn(turn(version, f"k{version}"))
    stored = stored.with_document(StoredDocument("doc", None, 3, "ab", {"bytes": 3, "text": "ü"}))
    assert [each.version for each in stored.turns] == list(range(3, MAX_TURNS + 3))


def test_large_answers_leave_room_for_fewer_and_the_last_is_always_kept() -> None:
    stored = StoredTurns()
    sizes = {1: MAX_NUM_BYTES // 2, 2: 100, 3: MAX_NUM_BYTES // 2, 4: 100, 5: 2 * MAX_NUM_BYTES, 6: 100}
    kept = []
    for version, num_bytes in sizes.items():
        stored = stored.with_turn(StoredTurn(version, None, "", {"text": "x" * num_bytes}, {}))
        kept.append([each.version for each in stored.turns])
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [5], [6]]
    assert StoredTurns.decode(stored.encode()) == stored
    assert StoredTurns.decode(b"") == StoredTurns()


@pytest.mark.parametrize("raw", [b"[", b"{}", b'{"turns":[[1]],"documents":[],"tokens_digest":""}', b"[" * 100_000])
def test_stored_answers_that_cannot_be_read_are_corrupt(raw: bytes) -> None:
    with pytest.raises(StateCorrupt):
        StoredTurns.decode(raw)


def test_a_document_is_found_by_its_id_or_its_key() -> None:
    stored = StoredTurns().with_document(StoredDocument("doc", "k", 3, "ab", {}))
    assert stored.find_document("doc", None) is not None
    assert stored.find_document(None, "k") is not None
    assert stored.find_document(None, None) is None
    assert stored.find_document("other", "other") is None


def key(name: str) -> SessionKey:
    return SessionKey("default", name)


def loaded(generation: str, num_bytes: int = 10) -> LoadedSession:
    committed = Generation(1, generation, 1, num_bytes, "", 0, 0, "")
    return LoadedSession(Head(committed, (), 0.0, 0.0), None, None)


def test_the_least_recently_used_copies_go_when_there_are_too_many_bytes() -> None:
    copies = HostCopies(max_num_bytes=30)
    a, b, c, d = loaded("a"), loaded("b"), loaded("c"), loaded("d")
    for name, copy in (("a", a), ("b", b), ("c", c)):
        copies.put(key(name), copy)
    assert copies.get(key("a"), a.head) is a
    copies.put(key("d"), d)
    assert copies.get(key("b"), b.head) is None
    assert copies.get(key("a"), a.head) is a
    assert (len(copies), copies.num_bytes) == (3, 30)


def test_a_copy_of_another_generation_is_not_used_and_not_kept() -> None:
    copies = HostCopies(max_num_bytes=30)
    copies.put(key("a"), loaded("a"))
    assert copies.get(key("a"), loaded("newer").head) is None
    assert (len(copies), copies.num_bytes) == (0, 0)


def test_a_session_that_is_larger_than_everything_is_not_kept() -> None:
    copies = HostCopies(max_num_bytes=30)
    copies.put(key("a"), loaded("a", num_bytes=31))
    assert (len(copies), copies.num_bytes) == (0, 0)
