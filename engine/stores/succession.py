"""Which head may follow which: what a commit keeps, what a name keeps, and when a writer's base is out of date.

Every store decides by these functions, inside its own atomic step.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from engine.errors import InvalidRequest, VersionNotFound
from engine.snapshots.checksums import part_checksum
from engine.snapshots.lazy_parts import LazyParts
from engine.stores.head import Buffer, Generation, Head, NewGeneration, buffer_num_bytes

MAX_RECENT = 16
MAX_NUM_NAMED = 16
DEFAULT_NUM_KEPT = 4

_NAME = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._:-]{1,64}")


def next_head(base: Head | None, new: NewGeneration, version: int, num_kept: int) -> Head:
    """The head that a commit on top of `base` leaves behind.

    Named generations stay, and `num_kept` of the others: the newest, and before them the one that was gone back to,
    so that an answer can be regenerated as often as one likes.
    """
    log_id, log_num_bytes = _appended_log(base, new)
    committed = Generation(
        version=version,
        generation=new.generation,
        num_parts=len(new.parts),
        num_bytes=_parts_num_bytes(new.parts),
        digest=new.digest,
        position=new.position,
        extra_num_bytes=buffer_num_bytes(new.extra),
        extra_digest=part_checksum(new.extra).hex(),
        created=new.updated,
        log_num_bytes=log_num_bytes,
    )
    recent = (*(base.recent if base else ()), new.generation)[-MAX_RECENT:]
    kept: tuple[Generation, ...] = ()
    if base is not None:
        # The commits of one ingest count as one generation: what stood before it stays kept until it has finished.
        kept = base.kept if base.open_ingest else _retained(base.generations, num_kept, new.continues)
        kept = tuple(g for g in kept if new.drops_since is None or g.version < new.drops_since)
    return Head(
        committed=committed,
        recent=recent,
        created=new.created,
        updated=new.updated,
        metadata=dict(new.metadata),
        open_ingest=new.open_ingest,
        ttl_seconds=new.ttl_seconds,
        kept=kept,
        log_id=log_id,
    )


def applied_head(current: Head, made: Head) -> Head:
    """What is told of a commit that `current` remembers and that had made `made`: never what others made since."""
    return current if current.generation == made.generation else made


def renamed_head(head: Head, version: int, name: str | None, num_kept: int) -> Head:
    """The head after a generation was given a name, or None for none; `head` itself when nothing changes.

    Raises VersionNotFound, and InvalidRequest for a name that cannot be given.
    """
    generation = head.find(version)
    if generation is None:
        raise VersionNotFound(f"version {version} of the session is not kept")
    if generation.name == name:
        return head
    if name is not None:
        if not _NAME.fullmatch(name) or name.isdecimal():
            raise InvalidRequest("a name has 1 to 64 characters out of A-Z a-z 0-9 . _ : -, not all digits", "name")
        if (holder := head.find(name)) is not None:
            raise InvalidRequest(f"version {holder.version} has this name", "name")
        if generation.name is not None:
            raise InvalidRequest(f"version {version} is named {generation.name}: take that name away first", "name")
        if sum(g.name is not None for g in head.generations) >= MAX_NUM_NAMED:
            raise InvalidRequest(f"a session has at most {MAX_NUM_NAMED} named versions", "name")
    committed, *kept = (replace(g, name=name) if g is generation else g for g in head.generations)
    return replace(head, committed=committed, kept=_retained(kept, num_kept), revision=head.revision + 1)


def described_head(head: Head, metadata: Mapping[str, str]) -> Head:
    """The head after its session was given other metadata."""
    return replace(head, metadata=dict(metadata), revision=head.revision + 1)


def is_unchanged(base: Head | None, current: Head | None) -> bool:
    """Whether a commit on top of `base` may replace `current`."""
    if base is None or current is None:
        return base is current
    return base.fence == current.fence


def generations_dropped(base: Head, head: Head) -> list[Generation]:
    """What `base` still held and its successor `head` does not keep."""
    held = {generation.generation for generation in head.generations}
    return [generation for generation in base.generations if generation.generation not in held]


def _parts_num_bytes(parts: Sequence[Buffer]) -> int:
    """Lazy parts know it without being put together."""
    return parts.num_bytes if isinstance(parts, LazyParts) else sum(buffer_num_bytes(part) for part in parts)


def _appended_log(base: Head | None, new: NewGeneration) -> tuple[str | None, int | None]:
    """The token log's id and length after the commit. It has the id of the generation that it began with."""
    if new.log is None:
        return None, None
    num_bytes = buffer_num_bytes(new.log)
    if base is None or base.log_id is None or base.log_num_bytes is None:
        return new.generation, num_bytes
    return base.log_id, base.log_num_bytes + num_bytes


def _retained(generations: Sequence[Generation], num_kept: int, first: int | None = None) -> tuple[Generation, ...]:
    """The named ones, and `num_kept` of the others: the version `first`, then the newest."""
    unnamed = [g.version for g in generations if g.name is None]
    kept = sorted(unnamed, key=lambda version: version != first)[:num_kept]
    return tuple(g for g in generations if g.name is not None or g.version in kept)
