"""The head of a session: which generation is committed, and what may be told without loading it.

The JSON form is what the local and the Redis store keep. `Head.from_json` checks every field's type and refuses what is
not a head of ours.
"""

import json
import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.checksums import part_checksum
from engine.errors import InvalidRequest, StateCorrupt

Buffer = bytes | bytearray | memoryview

MAX_RECENT = 16
NUM_KEPT_GENERATIONS = 1

_GENERATION = re.compile(r"[0-9a-f]{32}")


def new_generation_id() -> str:
    """A fresh random id, 32 hex digits. Made once per commit and reused by the retries of that same commit."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class IngestMark:
    """An ingest that is not finished: which document, and how many of its bytes are committed."""

    document_id: str
    offset: int


@dataclass(frozen=True, slots=True)
class Generation:
    """One committed snapshot, as far as a store has to know it. Sizes in bytes, digests in hex."""

    version: int
    generation: str
    num_parts: int
    num_bytes: int
    digest: str
    position: int
    extra_num_bytes: int
    extra_digest: str


@dataclass(frozen=True, slots=True)
class Head:
    """The committed generation of a session, and what may be told about the session without loading it."""

    committed: Generation
    recent: tuple[str, ...]
    created: float
    updated: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    open_ingest: IngestMark | None = None
    ttl_seconds: int | None = None
    kept: tuple[Generation, ...] = ()

    @property
    def version(self) -> int:
        return self.committed.version

    @property
    def generation(self) -> str:
        return self.committed.generation

    @property
    def num_parts(self) -> int:
        return self.committed.num_parts

    @property
    def num_bytes(self) -> int:
        return self.committed.num_bytes

    @property
    def digest(self) -> str:
        return self.committed.digest

    @property
    def position(self) -> int:
        return self.committed.position

    def find(self, version: int) -> Generation | None:
        """The committed or kept generation with this version, if there is one."""
        return next((g for g in (self.committed, *self.kept) if g.version == version), None)

    def to_json(self) -> bytes:
        return json.dumps(_head_to_dict(self), separators=(",", ":"), allow_nan=False).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> "Head":
        """Raises `StateCorrupt` when the bytes are not a head of ours."""
        try:
            return _head_from_dict(json.loads(raw))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StateCorrupt("the head of the session cannot be read") from error


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """What one commit brings. `parts` are the snapshot's bytes in order, `digest` its digest in hex.

    `extra` is opaque to the store and lives and dies with the generation (the stored answers of the last turns).
    `created` and `updated` are seconds since the epoch, for display only: nothing is decided by them.
    `ttl_seconds` counts from the last commit, load or touch, by the store's own clock; None keeps the session for ever.
    """

    generation: str
    parts: Sequence[Buffer]
    digest: str
    position: int
    created: float
    updated: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    open_ingest: IngestMark | None = None
    extra: Buffer = b""
    ttl_seconds: int | None = None

    def __post_init__(self) -> None:
        assert _GENERATION.fullmatch(self.generation), "a generation id comes from new_generation_id()"
        if self.ttl_seconds is not None and not 1 <= self.ttl_seconds <= 2**31:
            raise InvalidRequest("ttl_seconds is between 1 and 2147483648", param="ttl_seconds")


def next_head(base: Head | None, new: NewGeneration, version: int) -> Head:
    """The head that a commit on top of `base` leaves behind."""
    committed = Generation(
        version=version,
        generation=new.generation,
        num_parts=len(new.parts),
        num_bytes=sum(buffer_num_bytes(part) for part in new.parts),
        digest=new.digest,
        position=new.position,
        extra_num_bytes=buffer_num_bytes(new.extra),
        extra_digest=part_checksum(new.extra).hex(),
    )
    recent = (*(base.recent if base else ()), new.generation)[-MAX_RECENT:]
    kept: tuple[Generation, ...] = ()
    if base is not None:
        # The commits of one ingest count as one generation: what stood before it stays kept until it has finished.
        kept = base.kept if base.open_ingest else (base.committed, *base.kept)[:NUM_KEPT_GENERATIONS]
    return Head(
        committed=committed,
        recent=recent,
        created=new.created,
        updated=new.updated,
        metadata=dict(new.metadata),
        open_ingest=new.open_ingest,
        ttl_seconds=new.ttl_seconds,
        kept=kept,
    )


def is_unchanged(base: Head | None, current: Head | None) -> bool:
    """The fence. Equal versions alone could belong to a session that was deleted and made anew."""
    if base is None or current is None:
        return base is current
    return (base.version, base.generation) == (current.version, current.generation)


def generations_dropped(base: Head, head: Head) -> list[Generation]:
    """What `base` still held and its successor `head` does not keep."""
    held = {head.generation, *(generation.generation for generation in head.kept)}
    return [generation for generation in (base.committed, *base.kept) if generation.generation not in held]


def buffer_num_bytes(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def _head_to_dict(head: Head) -> dict[str, Any]:
    return {
        "committed": _generation_to_list(head.committed),
        "recent": head.recent,
        "created": head.created,
        "updated": head.updated,
        "metadata": dict(head.metadata),
        "open_ingest": [head.open_ingest.document_id, head.open_ingest.offset] if head.open_ingest else None,
        "ttl_seconds": head.ttl_seconds,
        "kept": [_generation_to_list(generation) for generation in head.kept],
    }


def _head_from_dict(value: dict[str, Any]) -> Head:
    mark = value["open_ingest"]
    ttl_seconds = value["ttl_seconds"]
    return Head(
        committed=_generation_from_list(value["committed"]),
        recent=tuple(_text(generation) for generation in value["recent"]),
        created=_seconds(value["created"]),
        updated=_seconds(value["updated"]),
        metadata={_text(k): _text(v) for k, v in value["metadata"].items()},
        open_ingest=None if mark is None else IngestMark(_text(mark[0]), _count(mark[1])),
        ttl_seconds=None if ttl_seconds is None else _count(ttl_seconds),
        kept=tuple(_generation_from_list(generation) for generation in value["kept"]),
    )


def _generation_to_list(generation: Generation) -> list[int | str]:
    return [
        generation.version,
        generation.generation,
        generation.num_parts,
        generation.num_bytes,
        generation.digest,
        generation.position,
        generation.extra_num_bytes,
        generation.extra_digest,
    ]


def _generation_from_list(value: list[Any]) -> Generation:
    version, generation, num_parts, num_bytes, digest, position, extra_num_bytes, extra_digest = value
    if not _GENERATION.fullmatch(generation):
        raise ValueError("not a generation id")
    return Generation(
        version=_count(version),
        generation=generation,
        num_parts=_count(num_parts),
        num_bytes=_count(num_bytes),
        digest=_text(digest),
        position=_count(position),
        extra_num_bytes=_count(extra_num_bytes),
        extra_digest=_text(extra_digest),
    )


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError("not a text")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a count")
    return value


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("not a time")
    return float(value)
