"""The bytes of a token log: whatever was written is read, and whatever was not is refused by name."""

import struct
from array import array
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import StateCorrupt
from engine.snapshots.checksums import part_checksum
from engine.snapshots.snapshot import OpenIngest
from engine.snapshots.token_log import TokenLogRecord, encode_record, read_history
from engine.snapshots.tokens_digest import INITIAL_DIGEST, extend_digest

TOKENIZER = b"t" * 16
digests = st.binary(min_size=16, max_size=16)
ids = st.lists(st.integers(0, 2**32 - 1), max_size=40)
marks = st.builds(OpenIngest, st.text(min_size=1, max_size=40), st.integers(0, 2**63 - 1), digests)
extras = st.fixed_dictionaries(
    {
        "pending_token_ids": ids.map(tuple),
        "entries": st.lists(digests, max_size=5).map(tuple),
        "system_digest": st.none() | digests,
        "open_ingest": st.none() | marks,
        "document": st.binary(max_size=60),
    }
)


def follow(base: TokenLogRecord | None, base_end: int, token_ids: list[int]) -> TokenLogRecord:
    """The record of a commit that feeds `token_ids` after `base`."""
    position, tokens_digest = (0, INITIAL_DIGEST) if base is None else (base.position, base.tokens_digest)
    return TokenLogRecord(
        continues=base_end,
        position=position + len(token_ids),
        tokens_digest=extend_digest(tokens_digest, token_ids),
        tokenizer=TOKENIZER,
        token_ids=array("I", token_ids),
    )


def three_records() -> list[bytes]:
    first = follow(None, 0, [1, 2, 3])
    log = [encode_record(first)]
    second = replace(follow(first, len(log[0]), [4]), open_ingest=OpenIngest("book", 7, b"d" * 16))
    log.append(encode_record(second))
    log.append(encode_record(follow(second, len(log[0]) + len(log[1]), [5, 6])))
    return log


WHOLE = b"".join(three_records())


# Where nothing was ever drawn, the first text waits for a table of all characters.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(ids, extras, st.integers(0, 100)), max_size=8))
def test_what_was_appended_is_read_along_the_way_that_led_to_the_last_record(
    commits: list[tuple[list[int], dict[str, object], int]],
) -> None:
    log = b""
    # By the end of its record: each state, and how it was come to.
    ways: dict[int, list[TokenLogRecord]] = {0: []}
    for token_ids, fields, choice in commits:
        base_end = [*ways][choice % len(ways)]
        way = ways[base_end]
        record = replace(follow(way[-1] if way else None, base_end, token_ids), **fields)  # type: ignore[arg-type]
        log += encode_record(record)
        ways[len(log)] = [*way, record]
    assert read_history(log) == ways[len(log)]
    assert read_history(memoryview(bytearray(log))) == ways[len(log)]


def test_a_record_costs_four_bytes_a_token_and_little_else() -> None:
    none, many = (len(encode_record(follow(None, 0, [7] * num_tokens))) for num_tokens in (0, 1000))
    assert many - none == 4000
    assert none < 110


def test_a_log_that_is_cut_inside_a_record_is_refused() -> None:
    ends = [0]
    for record in three_records():
        ends.append(ends[-1] + len(record))
    for length in range(len(WHOLE)):
        if length in ends:
            assert len(read_history(WHOLE[:length])) == ends.index(length)
        else:
            with pytest.raises(StateCorrupt, match="cut"):
                read_history(WHOLE[:length])


def test_every_flipped_bit_is_found() -> None:
    for index in range(len(WHOLE)):
        for bit in range(8):
            flipped = bytearray(WHOLE)
            flipped[index] ^= 1 << bit
            with pytest.raises(StateCorrupt, match="token log"):
                read_history(flipped)


@given(st.binary(min_size=1, max_size=300))
def test_bytes_that_are_no_log_are_refused(raw: bytes) -> None:
    with pytest.raises(StateCorrupt):
        read_history(raw)
    with pytest.raises(StateCorrupt):
        read_history(WHOLE + raw)


def resealed(record: bytes, offset: int, value: bytes) -> bytes:
    """A record with other bytes at an offset of its payload, under a checksum that is right."""
    changed = bytearray(record[:-8])
    changed[5 + offset : 5 + offset + len(value)] = value
    return bytes(changed) + part_checksum(changed)


# Where the fixed fields of a payload lie.
CONTINUES, POSITION, DIGEST, NUM_TOKENS, NUM_PENDING, SYSTEM_NUM_BYTES, ID_NUM_BYTES, MARK = (
    0,
    8,
    16,
    48,
    52,
    56,
    61,
    63,
)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (CONTINUES, struct.pack("<Q", 1)),
        (CONTINUES, struct.pack("<Q", 2**63)),
        (POSITION, struct.pack("<Q", 4)),
        (DIGEST, b"x"),
        (NUM_TOKENS, struct.pack("<I", 2)),
        (NUM_TOKENS, struct.pack("<I", 2**32 - 1)),
        (NUM_PENDING, struct.pack("<H", 1)),
        (SYSTEM_NUM_BYTES, b"\x04"),
        (ID_NUM_BYTES, struct.pack("<H", 12)),
        (MARK, struct.pack("<Q", 9)),
    ],
)
def test_fields_that_lie_under_a_checksum_that_is_right_are_refused(offset: int, value: bytes) -> None:
    with pytest.raises(StateCorrupt, match="token log"):
        read_history(resealed(three_records()[0], offset, value))


def test_a_record_that_continues_itself_or_a_later_one_is_refused() -> None:
    first = encode_record(follow(None, 0, [1]))
    for continues in (len(first), 2 * len(first)):
        with pytest.raises(StateCorrupt, match="continues"):
            read_history(resealed(first, CONTINUES, struct.pack("<Q", continues)))
    forward = resealed(first, CONTINUES, struct.pack("<Q", 2 * len(first)))
    backward = resealed(first, CONTINUES, struct.pack("<Q", len(first)))
    with pytest.raises(StateCorrupt, match="continues"):
        read_history(forward + backward)


def test_a_document_id_that_is_not_utf8_is_refused() -> None:
    record = encode_record(replace(follow(None, 0, []), open_ingest=OpenIngest("ab", 0, b"d" * 16)))
    with pytest.raises(StateCorrupt, match="UTF-8"):
        read_history(resealed(record, len(record) - 5 - 8 - 2, b"\xff\xff"))


def test_ids_that_are_not_those_of_the_digest_are_refused_with_both_digests() -> None:
    record = follow(None, 0, [1, 2])
    other = extend_digest(INITIAL_DIGEST, [1, 3])
    with pytest.raises(StateCorrupt) as caught:
        read_history(encode_record(replace(record, tokens_digest=other)))
    assert record.tokens_digest.hex() in caught.value.message
    assert other.hex() in caught.value.message
