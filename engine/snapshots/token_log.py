"""The token log: which ids a session was fed, in the order of its commits, as one string of bytes that only grows.

Each commit appends one record: `u8 schema | u32 length | payload | xxh3-64 of what precedes`, integers little-endian.
A record holds what its commit has fed and what else makes the session's record, and says by its first field which
record it continues, so that a session that goes back to an older version appends like any other and nothing is cut.
What is read is trusted in nothing: whatever is not a log that `encode_record` wrote is `StateCorrupt`.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.errors import StateCorrupt
from engine.snapshots.checksums import PART_CHECKSUM_NUM_BYTES, part_checksum
from engine.snapshots.header import OpenIngest
from engine.snapshots.tokens_digest import DIGEST_NUM_BYTES, INITIAL_DIGEST, extend_digest

SCHEMA_VERSION = 1
TOKEN_NUM_BYTES = 4

_FRAME = struct.Struct("<BI")
# continues, position, tokens_digest, tokenizer, then the lengths of token_ids, pending_token_ids, entries,
# system_digest, document, and of the open document its id's length, its offset and its digest.
_FIELDS = struct.Struct(f"<QQ{DIGEST_NUM_BYTES}s{DIGEST_NUM_BYTES}sIHHBIHQ{DIGEST_NUM_BYTES}s")


@dataclass(frozen=True, slots=True)
class TokenLogRecord:
    """One commit. What is not said to be new is as it is after the commit. Digests have 16 bytes.

    continues: where the record ends whose state this one goes on from; 0 is a session that has read nothing.
    tokenizer: digest of the tokenizer that made the ids.
    token_ids: fed by this commit, an `array("I")`.   entries: new in the ledger.
    document: what is stored of a document that this commit has read to its end, opaque here; empty without one.
    """

    continues: int
    position: int
    tokens_digest: bytes
    tokenizer: bytes
    token_ids: "array[int]"
    pending_token_ids: tuple[int, ...] = ()
    entries: tuple[bytes, ...] = ()
    system_digest: bytes | None = None
    open_ingest: OpenIngest | None = None
    document: bytes = b""


def encode_record(record: TokenLogRecord) -> bytes:
    assert sys.byteorder == "little"
    system_digest, mark = record.system_digest or b"", record.open_ingest
    document_id = b"" if mark is None else mark.document_id.encode()
    fields = _FIELDS.pack(
        record.continues,
        record.position,
        record.tokens_digest,
        record.tokenizer,
        len(record.token_ids),
        len(record.pending_token_ids),
        len(record.entries),
        len(system_digest),
        len(record.document),
        len(document_id),
        0 if mark is None else mark.offset,
        b"" if mark is None else mark.digest,
    )
    token_ids, pending = record.token_ids.tobytes(), array("I", record.pending_token_ids).tobytes()
    payload = b"".join((fields, token_ids, pending, *record.entries, system_digest, record.document, document_id))
    framed = _FRAME.pack(SCHEMA_VERSION, len(payload)) + payload
    return framed + part_checksum(framed)


def read_history(log: bytes | bytearray | memoryview) -> list[TokenLogRecord]:
    """The records that led to the last one's state, oldest first, without those that were gone back from.

    Their ids have been hashed and are those that each commit's tokens_digest names. Raises StateCorrupt.
    """
    by_end = dict(_records(memoryview(log).cast("B")))
    history: list[TokenLogRecord] = []
    end = memoryview(log).nbytes
    while end:
        if end not in by_end:
            raise StateCorrupt("a record of the token log continues one that is not there")
        # Each record is met once: one that continues itself, or what comes after it, is not found again.
        history.append(by_end.pop(end))
        end = history[-1].continues
    history.reverse()
    _check_chain(history)
    return history


def _check_chain(history: Sequence[TokenLogRecord]) -> None:
    position, tokens_digest = 0, INITIAL_DIGEST
    for record in history:
        position += len(record.token_ids)
        tokens_digest = extend_digest(tokens_digest, record.token_ids)
        if (record.position, record.tokens_digest) != (position, tokens_digest):
            raise StateCorrupt(
                f"the token log's ids up to position {position} have the digest {tokens_digest.hex()}, and"
                f" {record.tokens_digest.hex()} was committed at position {record.position}"
            )


def _records(log: memoryview) -> Iterator[tuple[int, TokenLogRecord]]:
    """Each record with the offset of its end."""
    start = 0
    while start < log.nbytes:
        payload_start = start + _FRAME.size
        if payload_start > log.nbytes:
            raise StateCorrupt("the token log was cut")
        schema, payload_num_bytes = _FRAME.unpack(log[start:payload_start])
        if schema != SCHEMA_VERSION:
            raise StateCorrupt(f"the token log has a record of schema {schema}, which was never written")
        payload_end = payload_start + payload_num_bytes
        end = payload_end + PART_CHECKSUM_NUM_BYTES
        if end > log.nbytes:
            raise StateCorrupt("the token log was cut")
        if part_checksum(log[start:payload_end]) != log[payload_end:end]:
            raise StateCorrupt("a record of the token log does not match its checksum")
        record = _read_payload(log[payload_start:payload_end])
        if encode_record(record) != log[start:end]:
            raise StateCorrupt("a record of the token log is not as it is written")
        yield end, record
        start = end


def _read_payload(payload: memoryview) -> TokenLogRecord:
    if payload.nbytes < _FIELDS.size:
        raise StateCorrupt("a record of the token log is too short")
    (
        continues,
        position,
        tokens_digest,
        tokenizer,
        num_tokens,
        num_pending,
        num_entries,
        system_num_bytes,
        document_num_bytes,
        document_id_num_bytes,
        offset,
        mark_digest,
    ) = _FIELDS.unpack(payload[: _FIELDS.size])
    lengths = (
        num_tokens * TOKEN_NUM_BYTES,
        num_pending * TOKEN_NUM_BYTES,
        num_entries * DIGEST_NUM_BYTES,
        system_num_bytes,
        document_num_bytes,
        document_id_num_bytes,
    )
    if _FIELDS.size + sum(lengths) != payload.nbytes or system_num_bytes not in (0, DIGEST_NUM_BYTES):
        raise StateCorrupt("a record of the token log has lengths that do not add up")
    pieces: list[memoryview] = []
    start = _FIELDS.size
    for num_bytes in lengths:
        pieces.append(payload[start : start + num_bytes])
        start += num_bytes
    token_ids, pending, entries, system_digest, document, document_id = pieces
    mark = None
    if document_id_num_bytes:
        mark = OpenIngest(_text(document_id), offset, mark_digest)
    return TokenLogRecord(
        continues=continues,
        position=position,
        tokens_digest=tokens_digest,
        tokenizer=tokenizer,
        token_ids=_ids(token_ids),
        pending_token_ids=tuple(_ids(pending)),
        entries=tuple(bytes(entries[at : at + DIGEST_NUM_BYTES]) for at in range(0, entries.nbytes, DIGEST_NUM_BYTES)),
        system_digest=bytes(system_digest) or None,
        open_ingest=mark,
        document=bytes(document),
    )


def _ids(raw: memoryview) -> "array[int]":
    token_ids = array("I")
    token_ids.frombytes(raw)
    return token_ids


def _text(raw: memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise StateCorrupt("a record of the token log has a document id that is not UTF-8") from error
