"""Stores that go wrong on purpose, around a real one."""

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar

from engine.errors import CommitConflict, StoreUnavailable
from engine.stores.base import Buffer, Generation, Head, NewGeneration, SessionKey, Store, TenantUsage

T = TypeVar("T")


class WrappedStore:
    """Every call that may fail goes through `_call`, which here does what was asked."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _call(self, work: Callable[[], T]) -> T:
        return work()

    @property
    def num_kept(self) -> int:
        return self._store.num_kept

    @property
    def durability(self) -> str:
        return self._store.durability

    @property
    def name(self) -> str:
        return self._store.name

    def check(self) -> None:
        self._call(self._store.check)

    def read_head(self, key: SessionKey) -> Head | None:
        return self._call(lambda: self._store.read_head(key))

    def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
        return self._call(lambda: self._store.load(key, version))

    def touch(self, key: SessionKey, head: Head) -> None:
        # It promises to fail nothing.
        self._store.touch(key, head)

    def load_extra(self, key: SessionKey, version: int | None = None) -> bytes:
        return self._call(lambda: self._store.load_extra(key, version))

    def load_log(self, key: SessionKey, log_id: str, num_bytes: int) -> Buffer:
        return self._call(lambda: self._store.load_log(key, log_id, num_bytes))

    def confirm(self, key: SessionKey, head: Head) -> None:
        self._call(lambda: self._store.confirm(key, head))

    def create(self, key: SessionKey, new: NewGeneration) -> Head:
        return self._call(lambda: self._store.create(key, new))

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        return self._call(lambda: self._store.commit(key, base, new))

    def name_version(self, key: SessionKey, version: int, name: str | None) -> Head:
        return self._call(lambda: self._store.name_version(key, version, name))

    def set_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> Head:
        return self._call(lambda: self._store.set_metadata(key, metadata))

    def delete(self, key: SessionKey) -> bool:
        return self._call(lambda: self._store.delete(key))

    def usage(self, tenant: str) -> TenantUsage:
        return self._call(lambda: self._store.usage(tenant))

    def recount(self, tenant: str) -> TenantUsage:
        return self._call(lambda: self._store.recount(tenant))

    def list_sessions(self, tenant: str, limit: int, after: str | None = None) -> list[tuple[str, Head]]:
        return self._call(lambda: self._store.list_sessions(tenant, limit, after))

    def quarantine(self, key: SessionKey, generation: Generation) -> None:
        self._call(lambda: self._store.quarantine(key, generation))

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        return self._call(lambda: self._store.acquire_lease(key, owner, seconds))

    def release_lease(self, key: SessionKey, owner: str) -> None:
        self._call(lambda: self._store.release_lease(key, owner))

    def close(self) -> None:
        self._store.close()


class FailingStore(WrappedStore):
    """`fail(n)` makes the n-th call from then on raise StoreUnavailable, and with `is_lasting` every call after it.

    is_applied: what failed has been done and only its reply is lost.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self.heal()

    def heal(self) -> None:
        self._first, self._is_lasting, self._is_applied = 0, False, False
        self.num_calls = self.num_failed = 0

    def fail(self, n: int, *, is_lasting: bool, is_applied: bool) -> None:
        self.heal()
        self._first, self._is_lasting, self._is_applied = n, is_lasting, is_applied

    def _call(self, work: Callable[[], T]) -> T:
        with self._lock:
            self.num_calls += 1
            fails = self._first and (
                self.num_calls == self._first or (self._is_lasting and self.num_calls > self._first)
            )
            self.num_failed += bool(fails)
        if not fails:
            return work()
        if self._is_applied:
            work()
        raise StoreUnavailable("out for the test")


class UncheckedStore(WrappedStore):
    """Broken: the last writer wins, whatever it had read."""

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        while True:
            try:
                return self._store.commit(key, self._store.read_head(key), new)
            except CommitConflict:
                continue


class ForgetfulStore(WrappedStore):
    """Broken: every seventh commit is acknowledged and taken back."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._lock = threading.Lock()
        self._num_commits = 0

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        head = self._store.commit(key, base, new)
        with self._lock:
            self._num_commits += 1
            forgets = self._num_commits % 7 == 0
        if forgets and base is not None:
            self._store.delete(key)
        return head
