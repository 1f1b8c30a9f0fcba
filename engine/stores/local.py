"""`local:///absolute/path`: blob files and a SQLite index in one directory. The default; nothing to set up.

A commit writes one blob (the snapshot's parts and the extra behind them), and then flips the session's row; what it
adds to the token log is written within the flip, where nobody else can write. All are fsynced before it is
acknowledged, so an acknowledged commit survives `kill -9` and a power cut. One server at a time may have the directory
open: a lock file, held by the kernel, refuses the second.
A deletion takes the row first, then the blobs and the quarantined copies, and then what SQLite still has of the row.
What the disk does not give up at once goes with the session's next commit or deletion, or at the next start.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from itertools import chain
from pathlib import Path

from engine.errors import (
    CommitConflict,
    LogLost,
    SessionExists,
    SessionNotFound,
    StateCorrupt,
    StateLost,
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
    VersionNotFound,
)
from engine.failpoints import failpoint
from engine.snapshots.checksums import part_checksum
from engine.stores.base import Buffer, Generation, Head, NewGeneration, SessionKey, TenantUsage
from engine.stores.blobs import BlobDirectory, make_directory
from engine.stores.expiry import IdleTimes
from engine.stores.head import buffer_num_bytes, stored_num_bytes
from engine.stores.index import Index
from engine.stores.leases import ProcessLeases
from engine.stores.local_errors import reading, writing
from engine.stores.local_lock import lock_file
from engine.stores.local_sweep import sweep_files, sweep_quarantine
from engine.stores.logs import LogDirectory
from engine.stores.succession import (
    DEFAULT_NUM_KEPT,
    applied_head,
    described_head,
    generations_dropped,
    is_unchanged,
    next_head,
    renamed_head,
)


class LocalStore:
    durability = "disk"

    def __init__(self, directory: Path, num_kept: int = DEFAULT_NUM_KEPT, max_num_bytes: int | None = None) -> None:
        """Lock the directory, open the index, sweep what a killed server left behind.

        max_num_bytes: of the generations of all sessions; a commit beyond it raises `StoreFull`.

        Raises `StoreMisconfigured` when another server has it open or its index is gone, `StoreUnavailable` when the
        directory cannot be used.
        """
        self.name = f"local://{directory}"
        self.num_kept = num_kept
        self._max_num_bytes = max_num_bytes
        # Blobs that no head names any more and that could not be removed yet.
        self._left: dict[SessionKey, set[tuple[BlobDirectory | LogDirectory, str]]] = {}
        self._left_lock = threading.Lock()
        self._idle_times = IdleTimes()
        self._leases = ProcessLeases()
        with reading(), ExitStack() as opened:
            make_directory(directory)
            opened.callback(os.close, lock_file(directory / "lock"))
            self._blobs = BlobDirectory(directory / "blobs")
            self._quarantined = BlobDirectory(directory / "quarantine")
            self._logs = LogDirectory(directory / "logs")
            index_path = directory / "index.sqlite3"
            if not index_path.exists() and self._blobs.names():
                raise StoreMisconfigured(f"{index_path} is gone, but snapshots are there: restore it, or move them")
            self._index = Index(index_path)
            opened.callback(self._index.close)
            sweep_files(self._index, self._blobs, self._logs)
            sweep_quarantine(self._index, self._quarantined)
            self._opened = opened.pop_all()

    def check(self) -> None:
        """An open store is fit for use."""

    def read_head(self, key: SessionKey) -> Head | None:
        with reading():
            head = self._index.read(key)
            if head is not None and self._idle_times.has_ended(key, head):
                self._end(key)
                return None
            return head

    def load(self, key: SessionKey, version: int | None = None) -> tuple[Head, list[Buffer]]:
        head, _, data = self._read(key, version, lambda generation: (0, generation.num_bytes))
        self._idle_times.touch(key, head)
        return head, [data]

    def touch(self, key: SessionKey, head: Head) -> None:
        with suppress(StoreUnavailable):
            if self.read_head(key) is not None:
                self._idle_times.touch(key, head)

    def load_extra(self, key: SessionKey, version: int | None = None) -> bytes:
        _, generation, extra = self._read(key, version, lambda it: (it.num_bytes, it.extra_num_bytes))
        if part_checksum(extra).hex() != generation.extra_digest:
            raise StateCorrupt("the stored answers of a session were altered")
        return bytes(extra)

    def load_log(self, key: SessionKey, log_id: str, num_bytes: int) -> Buffer:
        with reading():
            return self._logs.read(log_id, num_bytes)

    def create(self, key: SessionKey, new: NewGeneration) -> Head:
        try:
            return self._commit(key, None, new, version=0)
        except CommitConflict as conflict:
            raise SessionExists("a session with this id exists") from conflict

    def commit(self, key: SessionKey, base: Head | None, new: NewGeneration) -> Head:
        return self._commit(key, base, new, version=base.version + 1 if base else 1)

    def confirm(self, key: SessionKey, head: Head) -> None:
        """What the index names is on disk."""

    def name_version(self, key: SessionKey, version: int, name: str | None) -> Head:
        return self._change_head(key, lambda head: renamed_head(head, version, name, self.num_kept))

    def set_metadata(self, key: SessionKey, metadata: Mapping[str, str]) -> Head:
        return self._change_head(key, lambda head: described_head(head, metadata))

    def delete(self, key: SessionKey) -> bool:
        with writing():
            existed = self._remove(key, lambda _: True)
            for generation, owner in self._index.quarantined():
                if owner == key:
                    self._quarantined.remove(generation)
                    self._index.remove_quarantined(generation)
            self._index.erase(key)
        return existed

    def usage(self, tenant: str) -> TenantUsage:
        with reading():
            return self._index.usage().get(tenant, TenantUsage(0, 0))

    def recount(self, tenant: str) -> TenantUsage:
        self._end_idle_sessions()
        return self.usage(tenant)

    def list_sessions(self, tenant: str, limit: int, after: str | None = None) -> list[tuple[str, Head]]:
        page: list[tuple[str, Head]] = []
        cursor = after or ""
        while len(page) < limit:
            with reading():
                rows = self._index.page(tenant, limit, cursor)
            for session_id, head in rows:
                cursor = session_id
                if head is not None and not self._idle_times.has_ended(SessionKey(tenant, session_id), head):
                    page.append((session_id, head))
            if len(rows) < limit:
                break
        return page[:limit]

    def quarantine(self, key: SessionKey, generation: Generation) -> None:
        with writing():
            self._index.add_quarantined(key, generation.generation)
            self._blobs.link_into(self._quarantined, generation.generation)

    def acquire_lease(self, key: SessionKey, owner: str, seconds: float) -> bool:
        return self._leases.acquire(key, owner, seconds)

    def release_lease(self, key: SessionKey, owner: str) -> None:
        self._leases.release(key, owner)

    def close(self) -> None:
        self._opened.close()

    def _commit(self, key: SessionKey, base: Head | None, new: NewGeneration, version: int) -> Head:
        if self._idle_times.sweep_is_due():
            # Other sessions' deletions: what fails is tried again by the next sweep, and no reason to fail this commit.
            with suppress(StoreFull, StoreUnavailable):
                self._end_idle_sessions()
        current = self.read_head(key)
        head = next_head(base, new, version, self.num_kept)
        if current is not None and new.generation in current.recent:
            # The first try was applied and has not come to what it drops.
            with suppress(OSError):
                self._drop(key, generations_dropped(base, current) if base else [], _logs_ended(base, current))
            return applied_head(current, head)
        if not is_unchanged(base, current):
            raise CommitConflict("another writer committed this session first")
        with writing():
            self._check_room(base, head)
            failpoint("commit.before_parts")
            self._blobs.write(new.generation, chain(new.parts, (new.extra,)))
            self._flip(key, base, head, new.log)
            failpoint("commit.after_flip")
        with suppress(OSError):
            self._drop(key, generations_dropped(base, head) if base else [], _logs_ended(base, head))
            failpoint("commit.after_drop")
        return head

    def _flip(self, key: SessionKey, base: Head | None, head: Head, log: Buffer | None) -> None:
        def decide(current: Head | None) -> Head:
            if not is_unchanged(base, current):
                raise CommitConflict("another writer committed this session first")
            if not self._blobs.has(head.generation):
                raise StoreUnavailable("the snapshot that was just written is gone")
            self._check_room(base, head)
            if head.log_id is not None and head.log_num_bytes is not None and log is not None:
                self._logs.write(head.log_id, head.log_num_bytes - buffer_num_bytes(log), log)
            failpoint("commit.in_flip")
            # Before anyone can see the new head, and take the session for one whose time is over.
            self._idle_times.touch(key, head)
            return head

        try:
            failpoint("commit.before_flip")
            self._index.update(key, decide)
        except (CommitConflict, LogLost, StoreFull):
            self._remove_new(head)
            raise
        except (OSError, sqlite3.Error):
            # A commit that failed may still have reached the disk: the blob goes only if the index does not name it.
            with suppress(OSError, sqlite3.Error):
                current = self._index.read(key)
                if current is None or head.generation not in current.recent:
                    self._remove_new(head)
            raise

    def _remove_new(self, head: Head) -> None:
        """What only the commit of `head` has brought: its blob, and the log that it began."""
        self._blobs.remove(head.generation)
        self._logs.remove(head.generation)

    def _check_room(self, base: Head | None, head: Head) -> None:
        if self._max_num_bytes is None:
            return
        num_more = stored_num_bytes(head) - stored_num_bytes(base)
        num_used = sum(usage.num_bytes for usage in self._index.usage().values())
        if num_more > 0 and num_used + num_more > self._max_num_bytes:
            raise StoreFull(
                f"the local store may hold {self._max_num_bytes} bytes: {num_used} are used, {num_more} more are needed"
            )

    def _change_head(self, key: SessionKey, change: Callable[[Head], Head]) -> Head:
        head, _ = self._find(key, None)
        dropped: list[Generation] = []

        def decide(current: Head | None) -> Head:
            nonlocal head
            if current is None:
                raise SessionNotFound("there is no session with this id")
            head = change(current)
            dropped.extend(generations_dropped(current, head))
            return head

        with writing():
            self._index.update(key, decide)
            self._drop(key, dropped, ())
        return head

    def _find(self, key: SessionKey, version: int | None) -> tuple[Head, Generation]:
        head = self.read_head(key)
        if head is None:
            raise SessionNotFound("there is no session with this id")
        generation = head.find(version)
        if generation is None:
            raise VersionNotFound(f"version {version} of the session is not kept")
        return head, generation

    def _read(
        self, key: SessionKey, version: int | None, span: Callable[[Generation], tuple[int, int]]
    ) -> tuple[Head, Generation, memoryview]:
        """Part of a blob (`span`: offset, size). If it is gone, a newer commit may have dropped it: look again."""
        head, generation = self._find(key, version)
        while True:
            offset, num_bytes = span(generation)
            blob_num_bytes = generation.num_bytes + generation.extra_num_bytes
            with reading():
                data = self._blobs.read(generation.generation, offset, num_bytes, blob_num_bytes)
            if data is not None:
                return head, generation, data
            missing = generation
            head, generation = self._find(key, version)
            if generation == missing:
                whole = (kept.version for kept in head.kept if self._blobs.has(kept.generation))
                raise StateLost("the session's state is gone", last_whole_version=next(whole, None))

    def _drop(self, key: SessionKey, generations: Iterable[Generation], log_ids: Iterable[str | None]) -> None:
        with self._left_lock:
            left = self._left.setdefault(key, set())
            left.update((self._blobs, generation.generation) for generation in generations)
            left.update((self._logs, log_id) for log_id in log_ids if log_id is not None)
        failpoint("commit.before_drop")
        for directory, name in tuple(left):
            directory.remove(name)
            left.discard((directory, name))
        with self._left_lock:
            if not left:
                self._left.pop(key, None)

    def _remove(self, key: SessionKey, is_wanted: Callable[[Head], bool]) -> bool:
        """Delete a session's row, blobs and log; False when there is none, or it is still wanted."""
        removed: list[Head] = []

        def decide(head: Head | None) -> Head | None:
            if head is None or not is_wanted(head):
                return head
            removed.append(head)
            return None

        self._index.update(key, decide)
        if removed:
            self._idle_times.forget(key)
        generations = chain.from_iterable(head.generations for head in removed)
        self._drop(key, generations, [head.log_id for head in removed])
        return bool(removed)

    def _end(self, key: SessionKey) -> None:
        """Delete a session whose time is over, unless it was used in this moment."""
        self._remove(key, lambda head: self._idle_times.has_ended(key, head))

    def _end_idle_sessions(self) -> None:
        with writing():
            for key, head in self._index.all_heads():
                if head is not None and self._idle_times.has_ended(key, head):
                    self._end(key)


def _logs_ended(base: Head | None, head: Head) -> list[str | None]:
    return [base.log_id] if base is not None and base.log_id != head.log_id else []
