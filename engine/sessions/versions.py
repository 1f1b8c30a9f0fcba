"""Versions of a session: going back to one, beginning another session from one, naming one, and its bytes.

Nothing here feeds a token. A rewind is a commit like any other, whose state is an older one's: it raises the version,
and can itself be undone while what it left behind is kept.
"""

import asyncio
import logging
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import asdict, replace
from typing import TypeVar

from engine.device.state_pool import diverged_tensor
from engine.errors import (
    CommitConflict,
    IngestOpen,
    InvalidState,
    LogLost,
    SessionBusy,
    SessionExists,
    SessionNotFound,
    StateCorrupt,
    StateLost,
    VersionConflict,
    VersionNotFound,
)
from engine.sessions.committed import CommittedSessions
from engine.sessions.host_copies import LoadedSession
from engine.sessions.ledger import Message, num_known_messages
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.state_budget import StateBudget
from engine.sessions.storage import Beginning, Storage
from engine.sessions.stored_turns import RequestIdentity, StoredTurn, StoredTurns, stored_change
from engine.sessions.token_logs import Fed, TokenLogs
from engine.sessions.turn import CommittedSession
from engine.stores.base import Buffer, Generation, Head, SessionKey

# Metadata stands in the head, which is read at every turn and listed by the thousand.
MAX_NUM_METADATA = 16
MAX_METADATA_KEY_LENGTH = 64
MAX_METADATA_VALUE_LENGTH = 512

_ATTEMPTS = 8

T = TypeVar("T")
_logger = logging.getLogger(__name__)


class Versions:
    """Who may write, and when, is decided by the caller: `rewind` wants the session's lease."""

    def __init__(
        self,
        storage: Storage,
        committed: CommittedSessions,
        token_logs: TokenLogs,
        budget: StateBudget,
        max_state_norm: float,
    ) -> None:
        self._storage = storage
        self._committed = committed
        self._token_logs = token_logs
        self._budget = budget
        self._max_state_norm = max_state_norm

    def transfer(self, tenant: str) -> AbstractAsyncContextManager[None]:
        """Room for a snapshot on its way in or out, coded or not, and for the state that it is of.

        Held by those who `export` or `import_snapshot`, as long as they have the bytes. Raises QueueFull.
        """
        return self._budget.hold(2, transfer_of=tenant)

    async def create(
        self, key: SessionKey, metadata: Mapping[str, str], ttl_seconds: int | None, identity: RequestIdentity
    ) -> Head:
        """A session that has read nothing, at version 0. Raises SessionExists, StoreFull."""
        beginning = Beginning(metadata, ttl_seconds, log=self._token_logs.beginning())
        return await self._begin(key, beginning, identity)

    async def fork(
        self,
        source: SessionKey,
        version: int | str | None,
        key: SessionKey,
        metadata: Mapping[str, str] | None,
        ttl_seconds: int | None,
        identity: RequestIdentity,
    ) -> Head:
        """A new session, at version 0, that has learned what `source` had at `version` (its number or name; None is
        the committed one) and shares nothing with it. Metadata and time to live are the source's unless given; of the
        token log it has a copy up to that version.

        Raises SessionNotFound, VersionNotFound, SessionExists, StoreFull, QueueFull.
        """
        # The source need not have that version any more when the request comes again.
        if (begun := await self._begun(key, identity)) is not None:
            return begun
        async with self.transfer(key.tenant):
            _, loaded, log = await self.load_source(source, version)
            if loaded.record is not None:
                await self._storage.check_room(key, None)
            head = loaded.head
            stored = StoredTurns() if loaded.stored is None else loaded.stored.forked(key.session_id)
            beginning = Beginning(
                metadata=head.metadata if metadata is None else metadata,
                ttl_seconds=head.ttl_seconds if ttl_seconds is None else ttl_seconds,
                record=loaded.record,
                stored=stored,
                log=log,
            )
            return await self._begin(key, beginning, identity)

    async def load_source(
        self, source: SessionKey, version: int | str | None
    ) -> tuple[Generation, LoadedSession, Buffer | None]:
        """What another session may begin from: a kept version, its state and answers, its token log up to there.

        Raises SessionNotFound, VersionNotFound, and what loading does.
        """
        generation, loaded = await self._load_found(source, version, self._committed.load_version)
        return generation, loaded, await self._load_log(source, loaded.head, generation)

    async def stored_turn(self, key: SessionKey, version: int) -> StoredTurn | None:
        """The change that made a version, with its answer, as long as one of the kept versions remembers it; None when
        none does. Raises SessionNotFound."""
        for remembered_by in (version, None):
            with suppress(VersionNotFound, StateLost, StateCorrupt):
                turns = (await self._storage.load_stored(key, remembered_by)).turns
                if (found := next((turn for turn in turns if turn.version == version), None)) is not None:
                    return found
        return None

    async def set_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> Head:
        """In the place of what it has; no new version. Raises SessionNotFound."""
        return await self._storage.set_metadata(key, metadata)

    async def import_snapshot(
        self, key: SessionKey, parts: Sequence[Buffer], ttl_seconds: int | None, identity: RequestIdentity
    ) -> Head:
        """A new session, at version 0, from exported bytes; in one writable buffer they are not copied. It has no
        token log, for they do not tell its tokens.

        Raises SessionExists, StoreFull, StateModelMismatch, StateTooNew, and InvalidState for bytes that are no whole
        snapshot and for numbers that no session may have.
        """
        await self._storage.check_room(key, None)
        try:
            record = await self._storage.decode(parts)
        except StateCorrupt as error:
            # Nothing that is ours is corrupt: whoever sent this did not send a session.
            raise InvalidState(error.message) from error
        layer = await asyncio.to_thread(diverged_tensor, record.state.tensors, self._max_state_norm)
        if layer is not None:
            raise InvalidState(f"{layer} of the snapshot is not finite or too large")
        if not _is_fit(record.metadata):
            raise InvalidState("the snapshot has more metadata than a session may have")
        stored = StoredTurns(tokens_digest=record.state.tokens_digest.hex())
        return await self._begin(key, Beginning(record.metadata, ttl_seconds, record, stored), identity)

    async def export(self, key: SessionKey, version: int | str | None) -> tuple[Head, Generation, list[Buffer]]:
        """The snapshot of a kept version, whole and checked.

        Raises SessionNotFound, VersionNotFound, also for a version that has read nothing, of which there is no
        snapshot, and what loading does.
        """
        generation, (head, parts) = await self._load_found(key, version, self._storage.load_snapshot)
        if not parts:
            raise VersionNotFound("this version has read nothing: there is nothing to export")
        return head, generation, parts

    async def name(self, key: SessionKey, version: int | str | None, name: str) -> Head:
        """Keep a version, the committed one by default, until the name is taken away.

        Raises SessionNotFound, VersionNotFound, InvalidRequest for the name, and IngestOpen for a version that is the
        middle of a document.
        """
        head, generation = await self.find(key, version)
        if head.open_ingest is not None and generation == head.committed:
            raise IngestOpen("a document is open in this session: finish it, rewind, or name a version before it")
        return await self._storage.name_version(key, generation.version, name)

    async def unname(self, key: SessionKey, name: str) -> Head:
        """Take a name away. Raises SessionNotFound, VersionNotFound."""
        _, generation = await self.find(key, name)
        return await self._storage.name_version(key, generation.version, None)

    async def rewind(
        self, key: SessionKey, version: int | str, if_match: int | None, identity: RequestIdentity
    ) -> CommittedSession:
        """Make a kept version the committed one again, as a new version; also out of the middle of a document, and
        away from a state that cannot be loaded. The answers stored with it are those of that time.

        Raises SessionNotFound, VersionNotFound, VersionConflict, CommitConflict, StoreFull, QueueFull.
        """
        head, _ = await self.find(key, None)
        repeated = (await self._stored_now(key)).find_turn(head.version, identity)
        if repeated is not None:
            await self._committed.confirm(key, head)
            return CommittedSession(**repeated.response)
        # Only now: a repeated request is answered though the version that it went back to is not kept any more.
        generation = _kept(head, version)
        if if_match is not None and if_match != head.version:
            raise VersionConflict(f"the session is at version {head.version}", current=head.version)
        async with self.transfer(key.tenant):
            loaded = await self._committed.load_version(key, generation.version)
            if loaded.head.generation != head.generation:
                raise CommitConflict("another writer committed this session first")
            session = CommittedSession(
                session_id=key.session_id,
                version=loaded.head.version + 1,
                committed=True,
                durability=self._committed.durability,
                position=generation.position,
                rewound_to=generation.version,
            )
            assert loaded.stored is not None
            stored = loaded.stored.with_turn(stored_change(session.version, identity, asdict(session)))
            fed = Fed(array("I"), since=generation)
            await finish_even_if_cancelled(self._committed.commit(key, loaded.head, loaded.record, stored, fed))
        return session

    async def last_common(
        self, key: SessionKey, head: Head, messages: Sequence[Message]
    ) -> tuple[Generation, LoadedSession] | None:
        """The kept version whose ledger the most of these messages continue, the newest of those; None without one."""
        found: tuple[int, Generation, LoadedSession] | None = None
        for generation in head.kept:
            loaded = await self._committed.load_version(key, generation.version)
            ledger = () if loaded.record is None else loaded.record.ledger
            num_known = num_known_messages(messages, ledger)
            if num_known > (0 if found is None else found[0]):
                found = num_known, generation, loaded
        return None if found is None else found[1:]

    async def find(self, key: SessionKey, version: int | str | None) -> tuple[Head, Generation]:
        """Raises SessionNotFound, VersionNotFound."""
        head = await self._storage.read_head(key)
        if head is None:
            raise SessionNotFound("there is no session with this id")
        return head, _kept(head, version)

    async def _load_found(
        self, key: SessionKey, version: int | str | None, load: Callable[[SessionKey, int], Awaitable[T]]
    ) -> tuple[Generation, T]:
        """As `find`, and loaded: where no writer is held off, what was found may be dropped before it is loaded."""
        for _ in range(_ATTEMPTS):
            _, generation = await self.find(key, version)
            with suppress(VersionNotFound):
                return generation, await load(key, generation.version)
        raise SessionBusy("the session is being written to")

    async def _begin(self, key: SessionKey, beginning: Beginning, identity: RequestIdentity) -> Head:
        change = stored_change(0, identity, {})
        beginning = replace(beginning, stored=beginning.stored.with_turn(change))
        try:
            return await finish_even_if_cancelled(self._storage.create(key, beginning))
        except SessionExists:
            begun = await self._begun(key, identity)
            if begun is None:
                raise
            return begun

    async def _begun(self, key: SessionKey, identity: RequestIdentity) -> Head | None:
        """The session's head when this very request has begun it. Raises IdempotencyMismatch."""
        head = await self._storage.read_head(key)
        if head is None:
            return None
        repeated = (await self._stored_now(key)).find_turn(head.version, identity)
        if repeated is None or repeated.version != 0:
            return None
        await self._committed.confirm(key, head)
        return head

    async def _stored_now(self, key: SessionKey) -> StoredTurns:
        """None where they are lost with the state that they belong to, or gone with the session."""
        try:
            return await self._storage.load_stored(key)
        except (SessionNotFound, StateLost, StateCorrupt):
            return StoredTurns()

    async def _load_log(self, key: SessionKey, head: Head, generation: Generation) -> Buffer | None:
        """The token log up to a version; None without one, and where it is lost."""
        if head.log_id is None or generation.log_num_bytes is None:
            return None
        try:
            return await self._storage.load_log(key, head.log_id, generation.log_num_bytes)
        except LogLost as error:
            _logger.warning("%s: the fork has none", error.message)
            return None


def _kept(head: Head, version: int | str | None) -> Generation:
    """Raises VersionNotFound, which tells what there is."""
    generation = head.find(version)
    if generation is None:
        kept = ", ".join(f"{g.version} ({g.name})" if g.name else str(g.version) for g in head.generations)
        raise VersionNotFound(f"this version of the session is not kept; {kept} are")
    return generation


def _is_fit(metadata: Mapping[str, str]) -> bool:
    """As the wire demands it of metadata that it is given."""
    return len(metadata) <= MAX_NUM_METADATA and all(
        1 <= len(key) <= MAX_METADATA_KEY_LENGTH and len(value) <= MAX_METADATA_VALUE_LENGTH
        for key, value in metadata.items()
    )
