"""Sessions in and out of the store: snapshot coding and every store call, in threads of their own.

The event loop neither waits for a disk or a network here nor copies a state. A store that hangs takes these threads and
no others. Loads and commits come whole or not at all; who may write, and when, is decided elsewhere.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from atlas_model.config import AtlasConfig
from engine.errors import StateCorrupt, StateLost, StoreUnavailable
from engine.sessions.stored_turns import StoredTurns
from engine.snapshot import SessionRecord, decode_snapshot, encode_snapshot
from engine.stores.base import Head, IngestMark, NewGeneration, SessionKey, Store, new_generation_id

NUM_THREADS = 8
PART_NUM_BYTES = 4 * 2**20
# A commit whose reply was lost is asked about again; the store recognises it.
COMMIT_RETRY_SECONDS = (0.2, 1.0)

T = TypeVar("T")


class Storage:
    """`attach` a store before the first call; until then each raises StoreUnavailable."""

    def __init__(self, config: AtlasConfig, fingerprint: str) -> None:
        self._config = config
        self._fingerprint = fingerprint
        self._store: Store | None = None
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="store")

    def attach(self, store: Store) -> None:
        self._store = store

    @property
    def durability(self) -> str:
        return self._attached().durability

    async def check(self) -> None:
        await self._call(lambda store: store.check())

    async def read_head(self, key: SessionKey) -> Head | None:
        return await self._call(lambda store: store.read_head(key))

    async def load(self, key: SessionKey) -> tuple[Head, SessionRecord | None]:
        """The committed generation; no record when nothing was read. Raises what `decode_snapshot` does."""
        return await self._call(lambda store: self._load(store, key))

    async def touch(self, key: SessionKey, head: Head) -> None:
        """The session was used without a load."""
        if head.ttl_seconds is not None:
            await self._call(lambda store: store.touch(key, head))

    async def load_stored(self, key: SessionKey) -> StoredTurns:
        return await self._call(lambda store: StoredTurns.decode(store.load_extra(key)))

    async def create(self, key: SessionKey, metadata: Mapping[str, str], ttl_seconds: int | None) -> Head:
        now = time.time()
        new = NewGeneration(
            generation=new_generation_id(),
            parts=(),
            digest="",
            position=0,
            created=now,
            updated=now,
            metadata=metadata,
            ttl_seconds=ttl_seconds,
        )
        return await self._call(lambda store: store.create(key, new))

    async def commit(self, key: SessionKey, base: Head | None, record: SessionRecord, stored: StoredTurns) -> Head:
        """Raises CommitConflict when `base` is not the committed generation any more."""
        return await self._call(lambda store: self._commit(store, key, base, record, stored))

    async def delete(self, key: SessionKey) -> bool:
        return await self._call(lambda store: store.delete(key))

    async def list_sessions(self, tenant: str, limit: int, after: str | None) -> list[tuple[str, Head]]:
        return await self._call(lambda store: store.list_sessions(tenant, limit, after))

    async def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        return await self._call(lambda store: store.acquire_lease(key, owner, seconds))

    async def release_lease(self, key: SessionKey, owner: str) -> None:
        await self._call(lambda store: store.release_lease(key, owner))

    def close(self) -> None:
        """Waits for the calls in flight, then closes the store."""
        self._threads.shutdown(wait=True)
        if self._store is not None:
            self._store.close()

    async def _call(self, function: Callable[[Store], T]) -> T:
        store = self._attached()
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, store)

    def _attached(self) -> Store:
        if self._store is None:
            raise StoreUnavailable("the session store is not connected")
        return self._store

    def _load(self, store: Store, key: SessionKey) -> tuple[Head, SessionRecord | None]:
        try:
            head, parts = store.load(key)
            if head.num_bytes == 0:
                return head, None
            return head, decode_snapshot(parts, self._config, self._fingerprint, head.digest)
        except StateCorrupt as error:
            damaged = store.read_head(key)
            if damaged is None:
                raise
            store.quarantine(key, damaged.committed)
            raise StateCorrupt(error.message, self._last_whole_version(store, key, damaged)) from error

    def _last_whole_version(self, store: Store, key: SessionKey, head: Head) -> int | None:
        for generation in head.kept:
            try:
                _, parts = store.load(key, generation.version)
                decode_snapshot(parts, self._config, self._fingerprint, generation.digest)
            except (StateCorrupt, StateLost):
                continue
            return generation.version
        return None

    def _commit(
        self, store: Store, key: SessionKey, base: Head | None, record: SessionRecord, stored: StoredTurns
    ) -> Head:
        snapshot = encode_snapshot(record, self._fingerprint, PART_NUM_BYTES)
        mark = record.open_ingest
        new = NewGeneration(
            generation=new_generation_id(),
            parts=snapshot.parts,
            digest=snapshot.digest,
            position=record.state.position,
            created=record.created,
            updated=time.time(),
            metadata=record.metadata,
            open_ingest=None if mark is None else IngestMark(mark.document_id, mark.offset),
            extra=stored.encode(),
            ttl_seconds=None if base is None else base.ttl_seconds,
        )
        for seconds in COMMIT_RETRY_SECONDS:
            try:
                return store.commit(key, base, new)
            except StoreUnavailable:
                time.sleep(seconds)
        return store.commit(key, base, new)
