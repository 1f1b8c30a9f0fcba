"""Headers that lie, under checksums that are right: what an import could be handed."""

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from engine.errors import InvalidState, StateCorrupt, StateTooNew
from engine.snapshots.header import SCHEMA_VERSION
from engine.snapshots.snapshot import decode_snapshot
from tests.engine.snapshot_cases import (
    FINGERPRINT,
    full_snapshot,
    header_end,
    tiny_config,
    with_header,
    with_header_bytes,
)

CONFIG = tiny_config()
WHOLE = full_snapshot(CONFIG)


def decode(raw: bytes) -> None:
    decode_snapshot([raw], CONFIG, FINGERPRINT)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda fields: fields.__setitem__(name, value)


def with_table(change: Callable[[list[list[Any]]], object]) -> Callable[[dict[str, Any]], object]:
    def change_table(fields: dict[str, Any]) -> None:
        rows = msgpack.unpackb(fields["tensors"])
        change(rows)
        fields["tensors"] = msgpack.packb(rows)

    return change_table


def put_tensor(index: int, column: int, value: Any) -> Callable[[dict[str, Any]], object]:
    return with_table(lambda rows: rows[index].__setitem__(column, value))


def with_samples(change: Callable[[bytearray], object]) -> Callable[[dict[str, Any]], object]:
    def change_samples(fields: dict[str, Any]) -> None:
        packed = bytearray(fields["memory_samples"])
        change(packed)
        fields["memory_samples"] = bytes(packed)

    return change_samples


def put_in_samples(kind: str, offset: int, value: float) -> Callable[[dict[str, Any]], object]:
    """Of the frame: how many samples at 0, of how many layers at 2, how far apart at 4. Of the first sample: position
    at 12, time at 20; of its first layer: which one at 28, numbers from 30 on."""
    return with_samples(lambda packed: struct.pack_into(kind, packed, offset, value))


# Each makes a lie of a good header.
LIES: list[Callable[[dict[str, Any]], object]] = [
    put("schema", 0),
    put("schema", -1),
    put("schema", True),
    put("schema", 1.0),
    put("schema", "1"),
    put("schema", None),
    put("fingerprint", None),
    put("fingerprint", b"0123456789abcdef"),
    put("fingerprint", ""),
    put("fingerprint", "x" * 200),
    put("fingerprint", "one\nline"),
    put("position", -1),
    put("position", 2**63),
    put("position", 1.0),
    put("position", True),
    put("position", 123_457),
    put("tokens_digest", b""),
    put("tokens_digest", "text"),
    put("tokens_digest", b"x" * 65),
    put("pending_token_ids", [300]),
    put("pending_token_ids", [-1]),
    put("pending_token_ids", [1.5]),
    put("pending_token_ids", [0] * 65),
    put("pending_token_ids", {}),
    put("ledger", b"x" * 16 * 1025),
    put("ledger", b"x" * 17),
    put("ledger", "x" * 16),
    put("ledger", [b"x" * 16]),
    put("ledger", None),
    put("system_digest", 7),
    put("open_ingest", []),
    put("open_ingest", ["id", 0]),
    put("open_ingest", ["id", 0, b"d", b""]),
    put("open_ingest", ["id", -5, b"d"]),
    put("open_ingest", ["id", 0, "text"]),
    put("open_ingest", {"document_id": "id"}),
    put("metadata", []),
    put("metadata", {"name": 1}),
    put("metadata", {"name": {"deep": "er"}}),
    put("metadata", {str(index): "" for index in range(65)}),
    put("created", 1),
    put("created", float("nan")),
    put("created", float("inf")),
    put("created", -1.0),
    put("memory_samples", None),
    put("memory_samples", []),
    put("memory_samples", b""),
    put("memory_samples", b"x" * 2**19),
    put_in_samples("<H", 0, 65),
    put_in_samples("<H", 0, 63),
    put_in_samples("<H", 0, 0),
    put_in_samples("<H", 2, 1),
    put_in_samples("<H", 2, 3),
    put_in_samples("<Q", 4, 0),
    put_in_samples("<Q", 4, 2**63),
    put_in_samples("<Q", 12, 0),
    put_in_samples("<Q", 12, 123_457),
    put_in_samples("<d", 20, float("nan")),
    put_in_samples("<d", 20, float("inf")),
    put_in_samples("<d", 20, -1.0),
    put_in_samples("<H", 28, 1),
    put_in_samples("<H", 28, 2),
    put_in_samples("<f", 30, float("nan")),
    put_in_samples("<f", 30, float("-inf")),
    put("tensors", []),
    put("tensors", None),
    put("tensors", b""),
    put("tensors", b"\x90"),
    put("tensors", b"\xdd\xff\xff\xff\xff"),
    put("tensors", msgpack.packb([["position", "int64", [], 0, 8]])),
    put_tensor(1, 3, 64.0),
    put_tensor(1, 0, "layers.0.memory.other"),
    put_tensor(1, 1, "float64"),
    put_tensor(1, 1, "object"),
    put_tensor(1, 2, [10**12]),
    put_tensor(1, 2, [-1]),
    put_tensor(1, 2, [[2]]),
    put_tensor(1, 2, [1] * 100),
    put_tensor(1, 3, 0),
    put_tensor(1, 3, -64),
    put_tensor(1, 3, 2**62),
    put_tensor(1, 4, 2**40),
    put_tensor(1, 4, 0),
    put_tensor(1, 4, 2**63),
    with_table(lambda rows: rows.reverse()),
    with_table(lambda rows: rows.append(rows[-1])),
    with_table(lambda rows: rows[0].append(0)),
    put("part_num_bytes", 0),
    put("part_num_bytes", 1),
    put("part_num_bytes", 2**62),
    put("part_num_bytes", -4096),
    put("part_checksums", b""),
    put("part_checksums", b"x" * 7),
    put("part_checksums", b"x" * 80_000),
    put("part_checksums", [b"x" * 8]),
    put("digest", b"x" * 15),
    put("digest", None),
    put("other", 1),
    lambda fields: fields.pop("ledger"),
    lambda fields: dict(reversed(list(fields.items()))),
    lambda _: {},
    lambda _: {"schema": 1},
    lambda _: {"schema": [1]},
    lambda fields: {5 if name == "position" else name: value for name, value in fields.items()},
]


def nested(depth: int) -> bytes:
    return b"\x91" * depth + b"\xc0"


# None of this is a header of ours; the digest is still to come.
FOREIGN_MSGPACK: list[bytes] = [
    b"",
    b"\xc1",
    b"\xc0",
    b"\x01",
    msgpack.packb([1, 2, 3]),
    msgpack.packb("text"),
    msgpack.packb({"schema": msgpack.ExtType(5, b"")}),
    msgpack.packb({"schema": msgpack.ExtType(5, b"x" * 100)}),
    msgpack.packb({"schema": msgpack.Timestamp(0)}),
    b"\x82\xa6schema\x01\xa6schema\x01",
    b"\x81\xa6schema" + nested(10),
    b"\x81\xa6schema" + nested(100_000),
    b"\x81" * 100_000,
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x05",
    b"\x81\x90\x01",
    b"\x81\xc4\x01a\x01",
    b"\x81\xa2\xff\xfe\x01",
    msgpack.packb({"schema": 1}) + b"\xc0",
    msgpack.packb({"schema": 1, "text": "x" * 5000}),
    msgpack.packb({"schema": 1, "bytes": b"x" * 200_000}),
    msgpack.packb({"schema": 1, "list": [0] * 20_000}),
]


def test_sealing_an_unchanged_header_gives_a_good_snapshot() -> None:
    assert with_header(WHOLE, with_table(lambda rows: rows)) == WHOLE
    decode(WHOLE)


@pytest.mark.parametrize("change", LIES)
def test_a_header_that_lies_is_refused_though_its_checksums_hold(change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(InvalidState):
        decode(with_header(WHOLE, change))


@pytest.mark.parametrize("schema", [SCHEMA_VERSION + 1, 2**40])
def test_a_newer_schema_is_refused_as_such_whatever_else_it_holds(schema: int) -> None:
    with pytest.raises(StateTooNew, match=str(schema)):
        decode(with_header(WHOLE, put("schema", schema)))
    with pytest.raises(StateTooNew, match=str(schema)):
        decode(with_header(WHOLE, lambda _: {"schema": schema, "something": "new"}))


@pytest.mark.parametrize("packed", FOREIGN_MSGPACK)
def test_msgpack_that_we_would_not_write_is_refused(packed: bytes) -> None:
    with pytest.raises(InvalidState):
        decode(with_header_bytes(WHOLE, packed + bytes(16)))
    # And with the digest inside, where a good header has it.
    with pytest.raises(InvalidState):
        decode(with_header_bytes(WHOLE, packed + b"\xc4\x10" + bytes(16)))


def test_a_header_of_a_megabyte_and_a_byte_is_not_read() -> None:
    packed = bytes(2**20 + 1)
    with pytest.raises(StateCorrupt, match="length"):
        decode(with_header_bytes(WHOLE, packed))


def test_a_length_beyond_the_file_is_not_read() -> None:
    for length in (0, 15, header_end(WHOLE) - 9, len(WHOLE) - 7, 2**31, 2**32 - 1):
        with pytest.raises(StateCorrupt):
            decode(struct.pack("<4sI", b"ATLS", length) + WHOLE[8:])


def test_a_header_that_claims_a_terabyte_allocates_nothing() -> None:
    claims = [put_tensor(1, 2, [2**38]), put_tensor(1, 4, 2**40), put("part_num_bytes", 2**40)]
    hostile = [with_header(WHOLE, change) for change in claims]
    hostile.append(with_header_bytes(WHOLE, b"\x81\xa6schema\xdc\xff\xff" + b"\x90" * 2**19 + bytes(16)))
    tracemalloc.start()
    for raw in hostile:
        with pytest.raises(InvalidState):
            decode(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20
