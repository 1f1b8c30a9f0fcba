"""What every store promises, and the nouns that cross to it. Bytes only: no store looks inside a snapshot.

A *generation* is one committed snapshot, written under a fresh random id; the *head* of a session names the committed
one. A commit stages its parts first and then flips the head in one atomic step, which succeeds if and only if the head
still is the one that the writer read, or the writer's own generation is among the head's `recent` ones (its reply was
lost and this is the retry). A reader therefore always sees one whole generation, whatever fails in between.
The last generations before the committed one are kept, and those with a name (`succession`); what falls out is dropped
when no reader can still be loading it.

A session may have a token log beside its generations: bytes that only grow, and are committed by the flip that commits
their generation. What is behind the committed length does not exist: the next commit writes over it.

All methods are synchronous and safe to call from several threads. Any of them may raise `StoreUnavailable`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from engine.errors import InvalidRequest
from engine.stores.head import Buffer, Generation, Head, IngestMark, NewGeneration, new_generation_id

__all__ = [
    "Buffer",
    "Generation",
    "Head",
    "IngestMark",
    "NewGeneration",
    "SessionKey",
    "Store",
    "TenantUsage",
    "new_generation_id",
]

# Not the two names that a path drops on its way: what is called so could be made, and never be asked for or deleted.
_SESSION_ID = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9._:-]{1,128}")
_TENANT = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True, order=True)
class SessionKey:
    """Whose session, and which. Both are checked here, so that no store ever meets a slash, a brace or a newline."""

    tenant: str
    session_id: str

    def __post_init__(self) -> None:
        if not _SESSION_ID.fullmatch(self.session_id):
            message = "a session id has 1 to 128 characters out of A-Z a-z 0-9 . _ : - and is neither . nor .."
            raise InvalidRequest(message, param="session_id")
        if not _TENANT.fullmatch(self.tenant):
            raise InvalidRequest("a tenant has 1 to 64 characters out of A-Z a-z 0-9 . _ -", param="tenant")


@dataclass(frozen=True, slots=True)
class TenantUsage:
    """What a tenant has stored: sessions, and the bytes of all their generations."""

    num_sessions: int
    num_bytes: int


class Store(Protocol):
    @property
    def num_kept(self) -> int:
        """How many generations without a name a session keeps beside the committed one."""

    @property
    def durability(self) -> str:
        """How durable an acknowledged commit is: `none`, `disk`, `no`, `everysec`, `always`, `replicated:N` or
        `unknown`."""

    @property
    def name(self) -> str:
        """What a start-up line may show: the URL without user and password."""

    def check(self) -> None:
        """At start, and whenever readiness is asked for. Raises `StoreMisconfigured` or `StoreUnavailable` with one
        line of reason."""

    def read_head(self, key: SessionKey) -> Head | None: ...

    def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
        """The committed generation, or the kept one with this version. The buffers are the caller's own.

        Raises `SessionNotFound`, `VersionNotFound`, and `StateLost` when the head names parts that are gone. How the
        bytes are cut into buffers need not be how they were committed; their concatenation is.
        """

    def touch(self, key: SessionKey, head: Head) -> None:
        """Count the session's time to live, if it has one, anew from now: `head`'s generation was used, in a copy.

        A session that has ended stays ended. Fails nothing: the caller has the bytes.
        """

    def load_extra(self, key: SessionKey, version: int | None = None) -> bytes:
        """The `extra` of that generation. Raises as `load`, and `StateCorrupt` when it was altered."""

    def load_log(self, key: SessionKey, log_id: str, num_bytes: int) -> Buffer:
        """The first `num_bytes` of a token log, which a head has named. Raises `LogLost`."""

    def create(self, key: SessionKey, new: NewGeneration) -> Head:
        """Commit as version 0. Raises `SessionExists`. `new.parts` may be empty: a session that has read nothing."""

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        """Commit as version `base.version + 1`; `base` None means that the session must not exist, and makes version 1.

        Raises `CommitConflict` when the head is not `base` any more, `StoreFull`, and `LogLost` when the bytes are gone
        that `new.log` is to be appended to. After `StoreUnavailable` it may
        or may not have been applied: the same call with the same `new.generation` finds out, and is never applied
        twice. It returns the head that this commit made, also when others have followed: what they made is not `new`.
        """

    def confirm(self, key: SessionKey, head: Head) -> None:
        """Returns when the generation that `head` commits is as durable as `durability` says.

        For what a commit that raised `StoreUnavailable` may have left behind: nothing of it may be acknowledged before.
        Raises `StoreUnavailable` when it is not, and when the store has lost it.
        """

    def name_version(self, key: SessionKey, version: int, name: str | None) -> Head:
        """Give a kept generation a name, or None for none, in one atomic step; the head after it.

        Raises `SessionNotFound` and what `renamed_head` does.
        """

    def set_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> Head:
        """Replace the metadata in one atomic step; the head after it. Raises `SessionNotFound`."""

    def delete(self, key: SessionKey) -> bool:
        """Delete every byte of a session: its head, all its generations, those that a failed commit or a quarantine
        left, too. False when there was no such session.

        Whoever is loading it gets a whole generation or `SessionNotFound`. After an error the session may be gone with
        some of its bytes left: the same call again deletes those.
        """

    def usage(self, tenant: str) -> TenantUsage:
        """As counted by the commits, in little time. Sessions that have ended by themselves may still be counted."""

    def recount(self, tenant: str) -> TenantUsage:
        """The same after a look at every session of the tenant."""

    def list_sessions(self, tenant: str, limit: int, after: str | None = None) -> list[tuple[str, Head]]:
        """At most `limit` sessions of a tenant with ids greater than `after`, ordered by id."""

    def quarantine(self, key: SessionKey, generation: Generation) -> None:
        """Put a copy of a generation's bytes aside for 30 days. No commit deletes it; the session's deletion does."""

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        """Take or renew the lease of a session. It saves wasted work only; the fence is the head."""

    def release_lease(self, key: SessionKey, owner: str) -> None:
        """Give the lease back if `owner` holds it."""

    def close(self) -> None: ...
