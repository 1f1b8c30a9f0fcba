"""A head as JSON, as the local and the Redis store keep it. What is read is checked field by field."""

import json
import math
from typing import Any

from engine.errors import StateCorrupt
from engine.stores.head import GENERATION_ID, Generation, Head, IngestMark


def encode_head(head: Head) -> bytes:
    return json.dumps(_to_dict(head), separators=(",", ":"), allow_nan=False).encode()


def decode_head(raw: bytes) -> Head:
    """Raises `StateCorrupt` when the bytes are not a head of ours."""
    try:
        return _from_dict(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StateCorrupt("the head of the session cannot be read") from error


def _to_dict(head: Head) -> dict[str, Any]:
    value = {
        "committed": _generation_to_list(head.committed),
        "recent": head.recent,
        "created": head.created,
        "updated": head.updated,
        "metadata": dict(head.metadata),
        "open_ingest": [head.open_ingest.document_id, head.open_ingest.offset] if head.open_ingest else None,
        "ttl_seconds": head.ttl_seconds,
        "kept": [_generation_to_list(generation) for generation in head.kept],
        "revision": head.revision,
    }
    return value if head.log_id is None else {**value, "log": head.log_id}


def _from_dict(value: dict[str, Any]) -> Head:
    mark, log_id = value["open_ingest"], value.get("log")
    if log_id is not None and not GENERATION_ID.fullmatch(log_id):
        raise ValueError("not the id of a log")
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
        revision=_count(value.get("revision", 0)),
        log_id=log_id,
    )


def _generation_to_list(generation: Generation) -> list[int | float | str | None]:
    value: list[int | float | str | None] = [
        generation.version,
        generation.generation,
        generation.num_parts,
        generation.num_bytes,
        generation.digest,
        generation.position,
        generation.extra_num_bytes,
        generation.extra_digest,
        generation.created,
        generation.name,
    ]
    return value if generation.log_num_bytes is None else [*value, generation.log_num_bytes]


def _generation_from_list(value: list[Any]) -> Generation:
    version, generation, num_parts, num_bytes, digest, position, extra_num_bytes, extra_digest, *since = value
    # Heads of older servers end here; sessions without a token log have no length of it.
    created, name, *log_num_bytes = since or (0.0, None)
    if not GENERATION_ID.fullmatch(generation):
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
        created=_seconds(created),
        name=None if name is None else _text(name),
        log_num_bytes=_count(*log_num_bytes) if log_num_bytes else None,
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
