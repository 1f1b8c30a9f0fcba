"""Sessions in and out of the store: snapshot coding and every store call, in threads of their own.

The event loop neither waits for a disk or a network here nor copies a state. A store that hangs takes these threads and
no others. Loads and commits come whole or not at all; who may write, and when, is decided elsewhere.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

from atlas_model.config import AtlasConfig
from atlas_model.state import session_num_bytes
from engine.errors import StateCorrupt, StateLost, StoreFull, StoreUnavailable
from engine.sessions.beginnings import NewSession
from engine.sessions.quotas import UNLIMITED, Quotas, TenantQuota
from engine.sessions.stored_turns import StoredTurns
from engine.snapshots.codecs import Codec
from engine.snapshots.layout import layouts_of
from engine.snapshots.snapshot import SessionRecord, coded_record, decode_snapshot, encode_snapshot
from engine.stores.base import Buffer, Head, IngestMark, NewGeneration, SessionKey, Store, new_generation_id

NUM_THREADS = 8
PART_NUM_BYTES = 4 * 2**20
# A commit whose reply was lost is asked about again; the store recognises it.
COMMIT_RETRY_SECONDS = (0.2, 1.0)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a session is made with, at version 0. No record is one that has read nothing, no log one without."""

    metadata: Mapping[str, str] = field(default_factory=dict)
    ttl_seconds: int | None = None
    record: SessionRecord | None = None
    stored: StoredTurns = field(default_factory=StoredTurns)
    log: Buffer | None = None


class Storage:
    """`attach` a store before the first call; until then each raises StoreUnavailable.

    codec: of the snapshots that are written; those of any are read.
    """

    def __init__(
        self,
        config: AtlasConfig,
        fingerprint: str,
        quota: TenantQuota = UNLIMITED,
        codec: Codec = Codec.NONE,
    ) -> None:
        self._config = config
        self._fingerprint = fingerprint
        self._quotas = Quotas(quota, layouts_of(config)[codec].num_bytes)
        self._codec = codec
        self._store: Store | None = None
        self._threads = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="store")

    def attach(self, store: Store) -> None:
        self._store = store

    @property
    def state_num_bytes(self) -> int:
        """Of a session's tensors in memory."""
        return session_num_bytes(self._config)

    @property
    def num_committed_states(self) -> int:
        """In memory while one is committed: the state itself, and with a codec what it makes of it."""
        return 1 if self._codec is Codec.NONE else 2

    @property
    def durability(self) -> str:
        return self._attached().durability

    async def check(self) -> None:
        await self._call(lambda store: store.check())

    async def read_head(self, key: SessionKey) -> Head | None:
        return await self._call(lambda store: store.read_head(key))

    async def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, SessionRecord | None]:
        """The committed generation, or the kept one with this version; no record when nothing was read.

        Raises VersionNotFound and what `decode_snapshot` does.
        """
        return await self._call(lambda store: self._load(store, key, version))

    async def touch(self, key: SessionKey, head: Head) -> None:
        """The session was used without a load."""
        if head.ttl_seconds is not None:
            await self._call(lambda store: store.touch(key, head))

    async def load_stored(self, key: SessionKey, version: int | None = None) -> StoredTurns:
        return await self._call(lambda store: StoredTurns.decode(store.load_extra(key, version)))

    async def load_snapshot(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
        """The bytes of a generation, after they were found to be whole and a state of this model.

        Raises as `load`; no bytes when nothing was read.
        """
        return await self._call(lambda store: self._load_snapshot(store, key, version)[:2])

    async def load_log(self, key: SessionKey, log_id: str, num_bytes: int) -> Buffer:
        """The first bytes of a token log, not looked into. Raises LogLost."""
        return await self._call(lambda store: store.load_log(key, log_id, num_bytes))

    async def decode(self, parts: Sequence[Buffer]) -> SessionRecord:
        """Bytes from elsewhere. Raises what `decode_snapshot` does."""
        threads = asyncio.get_running_loop().run_in_executor
        return await threads(self._threads, decode_snapshot, parts, self._config, self._fingerprint)

    async def coded(self, record: SessionRecord) -> SessionRecord:
        """What a commit of this record leaves: see `coded_record`. Raises InvalidState."""
        if self._codec is Codec.NONE:
            return record
        threads = asyncio.get_running_loop().run_in_executor
        return await threads(self._threads, coded_record, record, self._config, self._codec)

    async def check_room(self, key: SessionKey, base: Head | None) -> None:
        """Raises StoreFull when it is known before the commit on top of `base` that a quota forbids it."""
        if self._quotas.quota.limits:
            await self._call(lambda store: self._quotas.check_room(store, key, base))

    async def create(self, key: SessionKey, beginning: Beginning) -> Head:
        """Raises SessionExists, StoreFull."""
        return await self._call(lambda store: self._create(store, key, beginning))

    async def commit(
        self,
        key: SessionKey,
        base: Head | None,
        record: SessionRecord | None,
        stored: StoredTurns,
        log: Buffer | None = None,
        continues: int | None = None,
        begins: NewSession | None = None,
        drops_since: int | None = None,
    ) -> Head:
        """No record is a session that has read nothing; `log` is appended to the token log, None for no log;
        `continues` is the version that was gone back to, `drops_since` the first that is not kept; without a `base`,
        `begins` has the metadata and time to live.

        Raises StoreFull, LogLost, and CommitConflict when `base` is not the head any more.
        """
        return await self._call(
            lambda store: self._commit(store, key, base, record, stored, log, continues, begins, drops_since)
        )

    async def confirm(self, key: SessionKey, head: Head) -> None:
        """Returns when what `head` commits is as durable as `durability` says. Raises StoreUnavailable."""
        await self._call(lambda store: store.confirm(key, head))

    async def name_version(self, key: SessionKey, version: int, name: str | None) -> Head:
        """Raises SessionNotFound, and what `renamed_head` does."""
        return await self._call(lambda store: store.name_version(key, version, name))

    async def set_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> Head:
        """Raises SessionNotFound."""
        return await self._call(lambda store: store.set_metadata(key, metadata))

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

    def _load(self, store: Store, key: SessionKey, version: int | None) -> tuple[Head, SessionRecord | None]:
        head, _, record = self._load_snapshot(store, key, version)
        return head, record

    def _load_snapshot(
        self, store: Store, key: SessionKey, version: int | None
    ) -> tuple[Head, list[Buffer], SessionRecord | None]:
        try:
            head, parts = store.load(key, version)
            generation = head.find(version)
            assert generation is not None
            if generation.num_bytes == 0:
                return head, [], None
            return head, parts, decode_snapshot(parts, self._config, self._fingerprint, generation.digest)
        except StateCorrupt as error:
            found = store.read_head(key)
            damaged = None if found is None else found.find(version)
            if found is None or damaged is None:
                raise
            with suppress(StoreFull, StoreUnavailable):
                store.quarantine(key, damaged)
            raise StateCorrupt(error.message, self._last_whole_version(store, key, found)) from error

    def _last_whole_version(self, store: Store, key: SessionKey, head: Head) -> int | None:
        for generation in head.generations:
            try:
                _, parts = store.load(key, generation.version)
                decode_snapshot(parts, self._config, self._fingerprint, generation.digest)
            except (StateCorrupt, StateLost):
                continue
            return generation.version
        return None

    def _create(self, store: Store, key: SessionKey, beginning: Beginning) -> Head:
        new = self._generation(
            beginning.record, beginning.stored, time.time(), beginning.metadata, beginning.ttl_seconds, beginning.log
        )
        with self._quotas.admitted(store, key, None, new):
            return _until_answered(lambda: store.create(key, new))

    def _commit(
        self,
        store: Store,
        key: SessionKey,
        base: Head | None,
        record: SessionRecord | None,
        stored: StoredTurns,
        log: Buffer | None,
        continues: int | None,
        begins: NewSession | None,
        drops_since: int | None,
    ) -> Head:
        created, known = (time.time(), begins or NewSession()) if base is None else (base.created, base)
        new = self._generation(record, stored, created, known.metadata, known.ttl_seconds, log)
        new = replace(new, continues=continues, drops_since=drops_since)
        with self._quotas.admitted(store, key, base, new):
            return _until_answered(lambda: store.commit(key, base, new))

    def _generation(
        self,
        record: SessionRecord | None,
        stored: StoredTurns,
        created: float,
        metadata: Mapping[str, str],
        ttl_seconds: int | None,
        log: Buffer | None,
    ) -> NewGeneration:
        mark, snapshot = None, None
        if record is not None:
            mark = record.open_ingest
            record = replace(record, created=created, metadata=dict(metadata))
            snapshot = encode_snapshot(record, self._fingerprint, PART_NUM_BYTES, self._codec)
        return NewGeneration(
            generation=new_generation_id(),
            parts=() if snapshot is None else snapshot.parts,
            digest="" if snapshot is None else snapshot.digest,
            position=0 if record is None else record.state.position,
            created=created,
            updated=time.time(),
            metadata=metadata,
            open_ingest=None if mark is None else IngestMark(mark.document_id, mark.offset),
            extra=stored.encode(),
            ttl_seconds=ttl_seconds,
            log=log,
        )


def _until_answered(commit: Callable[[], Head]) -> Head:
    for seconds in COMMIT_RETRY_SECONDS:
        try:
            return commit()
        except StoreUnavailable:
            time.sleep(seconds)
    return commit()
