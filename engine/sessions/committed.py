"""The committed generations of sessions, by the nearest road: this process' copy when the head still names it, else the
store, which is asked once for all who want the same. A copy's state may have a row on the device too: that is found by
the state's identity, so it is as confirmed as the copy. Counts what it does; who may write is decided elsewhere."""

import asyncio
import logging
import time
from dataclasses import replace

from engine.errors import AtlasError, LogLost, SessionError, SessionNotFound, VersionConflict
from engine.sequence import Resume, Tier
from engine.sessions.beginnings import NewSession
from engine.sessions.host_copies import HostCopies, LoadedSession
from engine.sessions.observer import SessionObserver
from engine.sessions.storage import Storage
from engine.sessions.stored_turns import StoredTurns
from engine.sessions.token_logs import Fed, TokenLogs
from engine.snapshots.snapshot import SessionRecord
from engine.stores.base import Head, SessionKey

_logger = logging.getLogger(__name__)


class CommittedSessions:
    def __init__(
        self, storage: Storage, max_host_num_bytes: int, observer: SessionObserver, token_logs: TokenLogs
    ) -> None:
        self._storage = storage
        self._token_logs = token_logs
        self._copies = HostCopies(max_host_num_bytes)
        self._observer = observer
        self._num_deletions = 0
        # By the generation that is wanted.
        self._loads: dict[tuple[SessionKey, str], asyncio.Task[LoadedSession | None]] = {}

    @property
    def durability(self) -> str:
        return self._storage.durability

    @property
    def num_host_copies(self) -> int:
        return len(self._copies)

    async def find(self, key: SessionKey) -> LoadedSession | None:
        """The session as it is committed now; None when there is none. Its stored answers may not be loaded.

        Raises VersionConflict, once, when the store has lost a version that was acknowledged here.
        """
        started = time.monotonic()
        known = self._copies.peek(key)
        head = await self._storage.read_head(key)
        if head is None:
            self._copies.drop(key)
            return None
        self._refuse_a_head_that_went_back(key, known, head)
        copy = self._copies.get(key, head)
        if copy is not None:
            await self._storage.touch(key, head)
            return replace(copy, tier=Tier.HOST, seconds=time.monotonic() - started)
        loaded = await self._load_once(key, head.generation)
        return None if loaded is None else replace(loaded, tier=Tier.STORE, seconds=time.monotonic() - started)

    async def find_with_answers(self, key: SessionKey) -> LoadedSession | None:
        """As `find`, with the stored answers. For writers: nobody else may commit in between."""
        loaded = await self.find(key)
        if loaded is None or loaded.stored is not None:
            return loaded
        loaded = replace(loaded, stored=await self._storage.load_stored(key))
        self._keep(key, loaded)
        return loaded

    def resumed(self, base: LoadedSession | None, resume: Resume | None) -> None:
        """Counts that a sequence went on from what `find` returned, in the tier that its state really came from."""
        if base is None or base.tier is None or resume is None:
            return
        tier = Tier.DEVICE if resume.tier is Tier.DEVICE else base.tier
        self._observer.resumed(tier, base.seconds + resume.seconds)

    async def commit(
        self,
        key: SessionKey,
        base: Head | None,
        record: SessionRecord | None,
        stored: StoredTurns,
        fed: Fed | None,
        begins: NewSession | None = None,
        drops_since: int | None = None,
    ) -> LoadedSession:
        """The session after the commit; its record is `record` as the snapshot's codec leaves it. `fed` goes to its
        token log, if it has one; None when the log leads to `record` as it is. Without a `base` it is new. Versions
        from `drops_since` on do not stay kept.

        Raises CommitConflict, StoreUnavailable, StoreFull.
        """
        started = time.monotonic()
        try:
            record = None if record is None else await self._storage.coded(record)
            appended = self._token_logs.appended(base, record, fed)
            continues = None if fed is None or fed.since is None else fed.since.version
            try:
                head = await self._storage.commit(key, base, record, stored, appended, continues, begins, drops_since)
            except LogLost as error:
                # A log is there to save a session, not to end it.
                _logger.warning("%s: it goes on without one", error.message)
                head = await self._storage.commit(key, base, record, stored, None, continues, begins, drops_since)
        except AtlasError:
            self._copies.drop(key)
            raise
        num_tokens = max(0, head.position - (0 if base is None else base.position))
        self._observer.committed(time.monotonic() - started, head.num_bytes, num_tokens)
        committed = LoadedSession(head, record, stored)
        self._keep(key, committed)
        return committed

    async def confirm(self, key: SessionKey, head: Head) -> None:
        """Before a repeated request is told what `head` has: its commit may have been short of replicas."""
        await self._storage.confirm(key, head)

    async def load_version(self, key: SessionKey, version: int) -> LoadedSession:
        """A kept generation with its stored answers, under the session's head as it is now; never kept as a copy.

        Raises SessionNotFound, VersionNotFound, and what loading does.
        """
        started = time.monotonic()
        try:
            head, record = await self._storage.load(key, version)
            stored = await self._storage.load_stored(key, version)
            return LoadedSession(head, record, stored, Tier.STORE, time.monotonic() - started)
        except SessionError:
            raise
        except AtlasError as error:
            self._observer.restore_failed(error.code)
            raise

    async def check_room(self, key: SessionKey, base: LoadedSession | None) -> None:
        """Before the work for a commit. Raises StoreFull when it is known already that a quota forbids it."""
        await self._storage.check_room(key, None if base is None else base.head)

    async def delete(self, key: SessionKey) -> bool:
        """From the store and from here; who is loading the session meanwhile keeps no copy either."""
        try:
            return await self._storage.delete(key)
        finally:
            self._num_deletions += 1
            self._copies.drop(key)

    async def _load_once(self, key: SessionKey, generation: str) -> LoadedSession | None:
        """Whoever leaves early takes nobody else's load along."""
        load = self._loads.get((key, generation))
        if load is None:
            load = self._loads[key, generation] = asyncio.create_task(self._load(key))
            load.add_done_callback(lambda _: self._loads.pop((key, generation)))
        return await asyncio.shield(load)

    async def _load(self, key: SessionKey) -> LoadedSession | None:
        num_deletions = self._num_deletions
        try:
            head, record = await self._storage.load(key)
        except SessionNotFound:
            return None
        except AtlasError as error:
            self._observer.restore_failed(error.code)
            raise
        loaded = LoadedSession(head, record, None)
        if num_deletions == self._num_deletions:
            self._keep(key, loaded)
        return loaded

    def _keep(self, key: SessionKey, loaded: LoadedSession) -> None:
        # Of a session that has read nothing, the head says it all.
        if loaded.record is not None:
            self._copies.put(key, loaded)

    def _refuse_a_head_that_went_back(self, key: SessionKey, known: LoadedSession | None, head: Head) -> None:
        """`known` was here before `head` was read: an older head of the same history is what a failover left.

        Told once, so that whoever goes on from there knows.
        """
        if known is None or head.version >= known.head.version or head.generation not in known.head.recent:
            return
        self._copies.drop(key)
        raise VersionConflict(
            f"the store has lost version {known.head.version} of the session, probably in a failover:"
            f" it is at version {head.version}",
            current=head.version,
        )
