"""The head of a session: which generation is committed, and what may be told without loading it."""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import InvalidRequest

Buffer = bytes | bytearray | memoryview

GENERATION_ID = re.compile(r"[0-9a-f]{32}")


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
    """One committed snapshot, as far as a store has to know it. Sizes in bytes, digests in hex.

    created: when it was committed, seconds since the epoch; 0 when an older server did.   name: keeps it for ever.
    log_num_bytes: where the token log ended when it was committed; None in a session without one.
    """

    version: int
    generation: str
    num_parts: int
    num_bytes: int
    digest: str
    position: int
    extra_num_bytes: int
    extra_digest: str
    created: float = 0.0
    name: str | None = None
    log_num_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """The committed generation of a session, and what may be told about the session without loading it.

    kept: generations from before it that can still be loaded, newest first.
    revision: counts the changes of the head that were no commits: names given and taken, other metadata.
    log_id: what the token log is stored under; None without one.
    """

    committed: Generation
    recent: tuple[str, ...]
    created: float
    updated: float
    metadata: Mapping[str, str] = field(default_factory=dict)
    open_ingest: IngestMark | None = None
    ttl_seconds: int | None = None
    kept: tuple[Generation, ...] = ()
    revision: int = 0
    log_id: str | None = None

    @property
    def generations(self) -> tuple[Generation, ...]:
        """All that can be loaded, newest first."""
        return (self.committed, *self.kept)

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

    @property
    def log_num_bytes(self) -> int | None:
        """The token log's length, as far as it is committed; None without one."""
        return None if self.log_id is None else self.committed.log_num_bytes

    @property
    def fence(self) -> tuple[int, str, int]:
        """Equal versions alone could belong to a session that was deleted and made anew."""
        return self.version, self.generation, self.revision

    def find(self, version: int | str | None) -> Generation | None:
        """The generation with this version or this name, if it is kept; None is the committed one."""
        if version is None:
            return self.committed
        return next((g for g in self.generations if version in (g.version, g.name)), None)


@dataclass(frozen=True, slots=True)
class NewGeneration:
    """What one commit brings. `parts` are the snapshot's bytes in order, `digest` its digest in hex.

    Parts have one size, the last may be shorter. They may be lazy, and are asked for one at a time, again by a retry.
    `extra` is opaque to the store and lives and dies with the generation (the stored answers of the last turns).
    `created` and `updated` are seconds since the epoch, for display only: nothing is decided by them.
    `ttl_seconds` counts from the last commit, load or touch, by the store's own clock; None keeps the session for ever.
    `continues` is the version whose state it goes on from, where that is not the committed one: it stays kept.
    `drops_since`: versions from that one on do not stay kept.
    `log` is appended to the session's token log; None leaves a session without one, and ends the one that it had.
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
    log: Buffer | None = None
    continues: int | None = None
    drops_since: int | None = None

    def __post_init__(self) -> None:
        assert GENERATION_ID.fullmatch(self.generation), "a generation id comes from new_generation_id()"
        if self.ttl_seconds is not None and not 1 <= self.ttl_seconds <= 2**31:
            raise InvalidRequest("ttl_seconds is between 1 and 2147483648", param="ttl_seconds")


def buffer_num_bytes(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def stored_num_bytes(head: Head | None) -> int:
    """What a session takes in the store: the snapshots and the extras of all its generations, and its token log."""
    if head is None:
        return 0
    return sum(g.num_bytes + g.extra_num_bytes for g in head.generations) + (head.log_num_bytes or 0)
