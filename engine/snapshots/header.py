"""The header of a snapshot: what a session is beside its tensors, as msgpack that is trusted in nothing.

Limits on every length, no extension types, no unknown or repeated field, exact types. What passes is a `Header`;
anything else is `InvalidState`, or `StateTooNew` when a newer schema wrote it. The last field is the digest of all
bytes before it, so that flipped bytes are found before anything is parsed (engine/snapshots/snapshot.py does that).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import msgpack

from engine.errors import InvalidState, StateTooNew
from engine.snapshots.checksums import DIGEST_NUM_BYTES, PART_CHECKSUM_NUM_BYTES

SCHEMA_VERSION = 3
MAX_HEADER_NUM_BYTES = 2**20

MAX_LEDGER = 1024
MAX_PENDING_TOKENS = 64
MAX_METADATA = 64
LEDGER_DIGEST_NUM_BYTES = 16
MAX_DIGEST_NUM_BYTES = 64
_MAX_TEXT_NUM_BYTES = 4096
_MAX_TABLE_NUM_BYTES = 2**17
_MAX_SAMPLES_NUM_BYTES = 2**19
_MAX_ITEMS = 2**14
_MAX_INT = 2**63 - 1

_FINGERPRINT = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# Of the newest schema, in their order, and what of them an older one lacks.
_FIELDS = (
    "schema",
    "fingerprint",
    "position",
    "tokens_digest",
    "pending_token_ids",
    "ledger",
    "system_digest",
    "open_ingest",
    "metadata",
    "created",
    "memory_samples",
    "tensors",
    "part_num_bytes",
    "part_checksums",
    "digest",
)
_LACKING: dict[int, tuple[str, ...]] = {1: ("memory_samples",), 2: (), 3: ()}


@dataclass(frozen=True, slots=True)
class OpenIngest:
    """A document that is being read: how many of its bytes are committed, always up to a segment's border, and the
    digest of those."""

    document_id: str
    offset: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Header:
    """`tensors` is a `pack_table` of its own: it is compared with ours byte for byte and never parsed.

    memory_samples: as `pack_samples` writes them, which is judged where the model is known; None in schema 1.
    schema: what it was read from; ours is always written.
    """

    fingerprint: str
    position: int
    tokens_digest: bytes
    pending_token_ids: tuple[int, ...]
    ledger: tuple[bytes, ...]
    system_digest: bytes | None
    open_ingest: OpenIngest | None
    metadata: dict[str, str]
    created: float
    memory_samples: bytes | None
    tensors: bytes
    part_num_bytes: int
    part_checksums: tuple[bytes, ...]
    schema: int = SCHEMA_VERSION

    def pack(self) -> bytes:
        """The header's bytes, the last DIGEST_NUM_BYTES being zeros in the digest's place.

        Raises `InvalidState` for a header that `unpack` would refuse: what cannot be read back is never written.
        """
        if any(len(entry) != LEDGER_DIGEST_NUM_BYTES for entry in self.ledger):
            _refuse("ledger")
        ingest = self.open_ingest
        fields: dict[str, Any] = {
            "schema": SCHEMA_VERSION,
            "fingerprint": self.fingerprint,
            "position": self.position,
            "tokens_digest": self.tokens_digest,
            "pending_token_ids": list(self.pending_token_ids),
            "ledger": b"".join(self.ledger),
            "system_digest": self.system_digest,
            "open_ingest": None if ingest is None else [ingest.document_id, ingest.offset, ingest.digest],
            "metadata": self.metadata,
            "created": self.created,
            "memory_samples": self.memory_samples,
            "tensors": self.tensors,
            "part_num_bytes": self.part_num_bytes,
            "part_checksums": b"".join(self.part_checksums),
            "digest": bytes(DIGEST_NUM_BYTES),
        }
        _read(fields)
        packed: bytes = msgpack.packb(fields, use_bin_type=True)
        if len(packed) > MAX_HEADER_NUM_BYTES:
            raise InvalidState("the snapshot's header is larger than 1 MiB")
        return packed


def pack_table(rows: Iterable[tuple[str, str, tuple[int, ...], int, int]]) -> bytes:
    """The tensor table: name, dtype, shape without the batch, offset from the first tensor's byte, size in bytes."""
    packed: bytes = msgpack.packb([list(row) for row in rows], use_bin_type=True)
    return packed


def unpack(packed: bytes) -> Header:
    """Raises `InvalidState` or `StateTooNew`."""
    try:
        fields = msgpack.unpackb(
            packed,
            raw=False,
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_refuse_extension,
            max_str_len=_MAX_TEXT_NUM_BYTES,
            max_bin_len=_MAX_SAMPLES_NUM_BYTES,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except (msgpack.UnpackException, ValueError, TypeError) as error:
        raise InvalidState("the snapshot's header is not the msgpack that we write") from error
    if type(fields) is not dict or type(fields.get("schema")) is not int:
        raise InvalidState("the snapshot's header has no schema version")
    if fields["schema"] > SCHEMA_VERSION:
        raise StateTooNew(f"the snapshot has schema {fields['schema']}, this server reads up to {SCHEMA_VERSION}")
    return _read(fields)


def _read(fields: dict[str, Any]) -> Header:
    lacking = _LACKING.get(fields["schema"])
    if lacking is None:
        raise InvalidState("the snapshot's schema was never written")
    if tuple(fields) != tuple(name for name in _FIELDS if name not in lacking):
        raise InvalidState("the snapshot's header has other fields than ours, or in another order")
    _bytes("digest", fields["digest"], DIGEST_NUM_BYTES, DIGEST_NUM_BYTES)
    fingerprint = _text("fingerprint", fields["fingerprint"])
    if not _FINGERPRINT.fullmatch(fingerprint):
        _refuse("fingerprint")
    created = fields["created"]
    if type(created) is not float or not 0 <= created < 2**53:
        _refuse("created")
    return Header(
        fingerprint=fingerprint,
        position=_int("position", fields["position"]),
        tokens_digest=_digest("tokens_digest", fields["tokens_digest"]),
        pending_token_ids=tuple(
            _int("pending_token_ids", value)
            for value in _list("pending_token_ids", fields["pending_token_ids"], MAX_PENDING_TOKENS)
        ),
        ledger=_split("ledger", fields["ledger"], LEDGER_DIGEST_NUM_BYTES, MAX_LEDGER),
        system_digest=None if fields["system_digest"] is None else _digest("system_digest", fields["system_digest"]),
        open_ingest=None if fields["open_ingest"] is None else _open_ingest(fields["open_ingest"]),
        metadata=_metadata(fields["metadata"]),
        created=created,
        memory_samples=(
            None
            if "memory_samples" in lacking
            else _bytes("memory_samples", fields["memory_samples"], 1, _MAX_SAMPLES_NUM_BYTES)
        ),
        tensors=_bytes("tensors", fields["tensors"], 1, _MAX_TABLE_NUM_BYTES),
        part_num_bytes=_int("part_num_bytes", fields["part_num_bytes"], least=1),
        part_checksums=_split("part_checksums", fields["part_checksums"], PART_CHECKSUM_NUM_BYTES, _MAX_ITEMS),
        schema=fields["schema"],
    )


def _open_ingest(value: Any) -> OpenIngest:
    if type(value) is not list or len(value) != 3:
        _refuse("open_ingest")
    document_id, offset, digest = value
    return OpenIngest(
        document_id=_text("open_ingest", document_id),
        offset=_int("open_ingest", offset),
        digest=_digest("open_ingest", digest),
    )


def _metadata(value: Any) -> dict[str, str]:
    if type(value) is not dict or len(value) > MAX_METADATA:
        _refuse("metadata")
    return {_text("metadata", name): _text("metadata", text) for name, text in value.items()}


def _split(name: str, value: Any, each: int, most: int) -> tuple[bytes, ...]:
    """Pieces of `each` bytes, put together in one field."""
    joined = _bytes(name, value, 0, each * most)
    if len(joined) % each:
        _refuse(name)
    return tuple(joined[start : start + each] for start in range(0, len(joined), each))


def _int(name: str, value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _MAX_INT:
        _refuse(name)
    return value


def _text(name: str, value: Any) -> str:
    if type(value) is not str or len(value) > _MAX_TEXT_NUM_BYTES:
        _refuse(name)
    try:
        if len(value.encode()) > _MAX_TEXT_NUM_BYTES:
            _refuse(name)
    except UnicodeEncodeError:
        _refuse(name)
    return value


def _bytes(name: str, value: Any, least: int, most: int) -> bytes:
    if type(value) is not bytes or not least <= len(value) <= most:
        _refuse(name)
    return value


def _digest(name: str, value: Any) -> bytes:
    return _bytes(name, value, 1, MAX_DIGEST_NUM_BYTES)


def _list(name: str, value: Any, most: int) -> list[Any]:
    if type(value) is not list or len(value) > most:
        _refuse(name)
    return value


def _unique(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a repeated key")
    return unique


def _refuse_extension(code: int, data: bytes) -> NoReturn:
    raise ValueError("an extension type")


def _refuse(name: str) -> NoReturn:
    raise InvalidState(f"the snapshot's header has a bad {name}")
