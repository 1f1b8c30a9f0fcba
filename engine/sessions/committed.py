"""The committed generations of sessions, by the nearest road: this process' copy when the head still names it, else the
store. Counts what it does; who may write is decided elsewhere."""

import time
from dataclasses import replace

from engine.errors import AtlasError, SessionError, SessionNotFound, VersionConflict
from engine.sessions.host_copies import HostCopies, LoadedSession
from engine.sessions.observer import SessionObserver
from engine.sessions.storage import Storage
from engine.sessions.stored_turns import StoredTurns
from engine.snapshot import SessionRecord
from engine.stores.base import Head, SessionKey


class CommittedSessions:
    def __init__(self, storage: Storage, max_host_num_bytes: int, observer: SessionObserver) -> None:
        self._storage = storage
        self._copies = HostCopies(max_host_num_bytes)
        self._observer = observer

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
            self._observer.resumed("host", time.monotonic() - started)
            return copy
        try:
            head, record = await self._storage.load(key)
        except SessionNotFound:
            return None
        except AtlasError as error:
            self._observer.restore_failed(error.code)
            raise
        loaded = LoadedSession(head, record, None)
        self._copies.put(key, loaded)
        if record is not None:
            self._observer.resumed("store", time.monotonic() - started)
        return loaded

    async def find_with_answers(self, key: SessionKey) -> LoadedSession | None:
        """As `find`, with the stored answers. For writers: nobody else may commit in between."""
        loaded = await self.find(key)
        if loaded is None or loaded.stored is not None:
            return loaded
        loaded = replace(loaded, stored=await self._storage.load_stored(key))
        self._copies.put(key, loaded)
        return loaded

    async def commit(
        self, key: SessionKey, base: Head | None, record: SessionRecord | None, stored: StoredTurns
    ) -> LoadedSession:
        """The session after the commit. Raises CommitConflict, StoreUnavailable, StoreFull."""
        started = time.monotonic()
        try:
            head = await self._storage.commit(key, base, record, stored)
        except AtlasError:
            self._copies.drop(key)
            raise
        num_tokens = max(0, head.position - (0 if base is None else base.position))
        self._observer.committed(time.monotonic() - started, head.num_bytes, num_tokens)
        committed = LoadedSession(head, record, stored)
        self._copies.put(key, committed)
        return committed

    async def confirm(self, key: SessionKey, head: Head) -> None:
        """Before a repeated request is told what `head` has: its commit may have been short of replicas."""
        await self._storage.confirm(key, head)

    async def load_version(self, key: SessionKey, version: int) -> LoadedSession:
        """A kept generation with its stored answers, under the session's head as it is now; never kept as a copy.

        Raises SessionNotFound, VersionNotFound, and what loading does.
        """
        try:
            head, record = await self._storage.load(key, version)
            return LoadedSession(head, record, await self._storage.load_stored(key, version))
        except SessionError:
            raise
        except AtlasError as error:
            self._observer.restore_failed(error.code)
            raise

    async def delete(self, key: SessionKey) -> bool:
        self._copies.drop(key)
        return await self._storage.delete(key)

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
