"""`memory://`: sessions that end with the process, for tests and throw-away servers.

One lock, the same heads and the same rules as the other stores. Bytes are copied on the way in and on the way out.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from engine.errors import CommitConflict, LogLost, SessionExists, SessionNotFound, StateLost, VersionNotFound
from engine.stores.base import Buffer, Generation, Head, NewGeneration, SessionKey, TenantUsage
from engine.stores.expiry import IdleTimes
from engine.stores.head import stored_num_bytes
from engine.stores.leases import ProcessLeases
from engine.stores.succession import (
    DEFAULT_NUM_KEPT,
    applied_head,
    described_head,
    generations_dropped,
    is_unchanged,
    next_head,
    renamed_head,
)


@dataclass(frozen=True, slots=True)
class _Blob:
    data: bytes
    extra: bytes


class MemoryStore:
    durability = "none"
    name = "memory://"

    def __init__(self, num_kept: int = DEFAULT_NUM_KEPT) -> None:
        self.num_kept = num_kept
        self._lock = threading.Lock()
        self._heads: dict[SessionKey, Head] = {}
        self._blobs: dict[str, _Blob] = {}
        self._quarantined: dict[SessionKey, dict[str, _Blob]] = {}
        self._logs: dict[str, bytearray] = {}
        self._idle_times = IdleTimes()
        self._leases = ProcessLeases()

    def check(self) -> None:
        """Always fit for use."""

    def read_head(self, key: SessionKey) -> Head | None:
        with self._lock:
            return self._live_head(key)

    def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
        with self._lock:
            head = self._existing_head(key)
            blob = self._blob(head, _generation(head, version))
            self._idle_times.touch(key, head)
        return head, [bytearray(blob.data)]

    def touch(self, key: SessionKey, head: Head) -> None:
        with self._lock:
            if self._live_head(key) is not None:
                self._idle_times.touch(key, head)

    def load_extra(self, key: SessionKey, version: int | None = None) -> bytes:
        with self._lock:
            head = self._existing_head(key)
            return self._blob(head, _generation(head, version)).extra

    def load_log(self, key: SessionKey, log_id: str, num_bytes: int) -> Buffer:
        with self._lock:
            log = self._logs.get(log_id, b"")
            if len(log) < num_bytes:
                raise LogLost("the session's token log is gone")
            return bytes(log[:num_bytes])

    def create(self, key: SessionKey, new: NewGeneration) -> Head:
        try:
            return self._flip(key, None, new, version=0)
        except CommitConflict as conflict:
            raise SessionExists("a session with this id exists") from conflict

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        return self._flip(key, base, new, version=base.version + 1 if base else 1)

    def confirm(self, key: SessionKey, head: Head) -> None:
        """Nothing here outlives the process."""

    def name_version(self, key: SessionKey, version: int, name: str | None) -> Head:
        return self._change_head(key, lambda head: renamed_head(head, version, name, self.num_kept))

    def set_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> Head:
        return self._change_head(key, lambda head: described_head(head, metadata))

    def delete(self, key: SessionKey) -> bool:
        with self._lock:
            existed = self._live_head(key) is not None
            self._remove(key)
            return existed

    def usage(self, tenant: str) -> TenantUsage:
        with self._lock:
            heads = [self._live_head(key) for key in list(self._heads) if key.tenant == tenant]
            num_bytes = [stored_num_bytes(head) for head in heads if head is not None]
            return TenantUsage(len(num_bytes), sum(num_bytes))

    def recount(self, tenant: str) -> TenantUsage:
        return self.usage(tenant)

    def list_sessions(self, tenant: str, limit: int, after: str | None = None) -> list[tuple[str, Head]]:
        with self._lock:
            ids = sorted(key.session_id for key in self._heads if key.tenant == tenant)
            heads = (
                (session_id, self._live_head(SessionKey(tenant, session_id)))
                for session_id in ids
                if after is None or session_id > after
            )
            return [(session_id, head) for session_id, head in heads if head is not None][:limit]

    def quarantine(self, key: SessionKey, generation: Generation) -> None:
        with self._lock:
            if blob := self._blobs.get(generation.generation):
                self._quarantined.setdefault(key, {})[generation.generation] = blob

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        return self._leases.acquire(key, owner, seconds)

    def release_lease(self, key: SessionKey, owner: str) -> None:
        self._leases.release(key, owner)

    def close(self) -> None:
        """Nothing to give back."""

    def _flip(self, key: SessionKey, base: Head | None, new: NewGeneration, version: int) -> Head:
        blob = _Blob(b"".join(new.parts), bytes(new.extra))
        with self._lock:
            if self._idle_times.sweep_is_due():
                for other in list(self._heads):
                    self._live_head(other)
            current = self._live_head(key)
            head = next_head(base, new, version, self.num_kept)
            if current is not None and new.generation in current.recent:
                return applied_head(current, head)
            if not is_unchanged(base, current):
                raise CommitConflict("another writer committed this session first")
            self._append_log(base, head, new)
            self._blobs[new.generation] = blob
            self._heads[key] = head
            self._idle_times.touch(key, head)
            self._drop(generations_dropped(base, head) if base else ())
            return head

    def _append_log(self, base: Head | None, head: Head, new: NewGeneration) -> None:
        if head.log_id is not None and new.log is not None:
            if head.log_id == new.generation:
                self._logs[head.log_id] = bytearray()
            elif head.log_id not in self._logs:
                raise LogLost("the session's token log is gone")
            self._logs[head.log_id] += new.log
        elif base is not None and base.log_id is not None:
            self._logs.pop(base.log_id, None)

    def _change_head(self, key: SessionKey, change: Callable[[Head], Head]) -> Head:
        with self._lock:
            base = self._existing_head(key)
            head = self._heads[key] = change(base)
            self._drop(generations_dropped(base, head))
            return head

    def _live_head(self, key: SessionKey) -> Head | None:
        head = self._heads.get(key)
        if head is not None and self._idle_times.has_ended(key, head):
            self._remove(key)
            return None
        return head

    def _existing_head(self, key: SessionKey) -> Head:
        head = self._live_head(key)
        if head is None:
            raise SessionNotFound("there is no session with this id")
        return head

    def _blob(self, head: Head, generation: Generation) -> _Blob:
        blob = self._blobs.get(generation.generation)
        if blob is None:
            whole = (kept.version for kept in head.kept if kept.generation in self._blobs)
            raise StateLost("the session's state is gone", last_whole_version=next(whole, None))
        return blob

    def _remove(self, key: SessionKey) -> None:
        self._idle_times.forget(key)
        self._quarantined.pop(key, None)
        head = self._heads.pop(key, None)
        self._drop(head.generations if head else ())
        if head is not None and head.log_id is not None:
            self._logs.pop(head.log_id, None)

    def _drop(self, generations: Iterable[Generation]) -> None:
        for generation in generations:
            self._blobs.pop(generation.generation, None)


def _generation(head: Head, version: int | None) -> Generation:
    generation = head.find(version)
    if generation is None:
        raise VersionNotFound(f"version {version} of the session is not kept")
    return generation
