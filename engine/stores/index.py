"""The local store's index, in SQLite (WAL, synchronous=FULL): one row per session, the head in it, and a table of which
quarantined generation is whose.

Errors are `sqlite3.Error`s; the store gives them their names. One connection writes and another reads, each behind its
own lock, so that a read does not wait for a commit's fsync. What each tenant has stored is counted along: only this
process has the index open.

What is deleted is overwritten (secure_delete), with one exception: a balancing leaves old copies of what it moves in
the free space of SQLite's pages. It moves no more of a row than stands in the page itself, so a head begins behind as
many blanks as can stand there; and for the rest, the key, `erase` looks.
"""

import mmap
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import StateCorrupt, StoreMisconfigured
from engine.stores.base import Head, SessionKey, TenantUsage
from engine.stores.blobs import sync_directory
from engine.stores.head import stored_num_bytes
from engine.stores.head_json import decode_head, encode_head

# 1 knew nothing of quarantined generations, and did not overwrite what it deleted.
_SCHEMA_VERSION = 2
_BUSY_SECONDS = 1.0
_PAGE_NUM_BYTES = 4096
# Of a row of a table WITHOUT ROWID (sqlite.org/fileformat2.html, "B-tree Pages").
_IN_PAGE_NUM_BYTES = (_PAGE_NUM_BYTES - 12) * 64 // 255 - 23
_NOTHING = TenantUsage(0, 0)


class Index:
    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._path = path
        self._writer = _connect(path)
        self._reader = _connect(path)
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._usage: dict[str, TenantUsage] | None = None
        try:
            self._create_tables()
            sync_directory(path.parent)
        except BaseException:
            self.close()
            raise

    def read(self, key: SessionKey) -> Head | None:
        with self._read_lock:
            return _read(self._reader, key)

    def update(self, key: SessionKey, decide: Callable[[Head | None], Head | None]) -> None:
        """Replace the head by what `decide` makes of the current one, None deleting it, in one durable step.

        When `decide` raises, nothing is changed.
        """
        with self._write_lock:
            with self._transaction() as connection:
                before = _read(connection, key)
                head = decide(before)
                if head is None:
                    connection.execute(
                        "DELETE FROM sessions WHERE tenant = ? AND session_id = ?", (key.tenant, key.session_id)
                    )
                else:
                    connection.execute(
                        "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)",
                        (key.tenant, key.session_id, _encode(head)),
                    )
            if self._usage is not None:
                _count(self._usage, key.tenant, before, head)

    def page(self, tenant: str, limit: int, after: str) -> list[tuple[str, Head | None]]:
        """In the order of the ids, those greater than `after`. None stands for a head that cannot be read."""
        with self._read_lock:
            rows = self._reader.execute(
                "SELECT session_id, head FROM sessions WHERE tenant = ? AND session_id > ? ORDER BY session_id LIMIT ?",
                (tenant, after, limit),
            ).fetchall()
        return [(session_id, _readable(raw)) for session_id, raw in rows]

    def all_heads(self) -> list[tuple[SessionKey, Head | None]]:
        with self._read_lock:
            rows = self._reader.execute("SELECT tenant, session_id, head FROM sessions").fetchall()
        return [(SessionKey(tenant, session_id), _readable(raw)) for tenant, session_id, raw in rows]

    def usage(self) -> dict[str, TenantUsage]:
        """By tenant. A head that cannot be read counts for nothing."""
        with self._write_lock:
            if self._usage is None:
                self._usage = {}
                for key, head in self.all_heads():
                    _count(self._usage, key.tenant, None, head)
            return dict(self._usage)

    def add_quarantined(self, key: SessionKey, generation: str) -> None:
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO quarantined VALUES (?, ?, ?)", (generation, key.tenant, key.session_id)
            )

    def remove_quarantined(self, generation: str) -> None:
        with self._transaction() as connection:
            connection.execute("DELETE FROM quarantined WHERE generation = ?", (generation,))

    def quarantined(self) -> list[tuple[str, SessionKey]]:
        """Generations, and whose they are."""
        with self._read_lock:
            rows = self._reader.execute("SELECT generation, tenant, session_id FROM quarantined").fetchall()
        return [(generation, SessionKey(tenant, session_id)) for generation, tenant, session_id in rows]

    def erase(self, key: SessionKey) -> None:
        """Leave nothing of a deleted session in the files. Raises while another process reads them."""
        with self._write_lock, self._read_lock:
            self._empty_log()
            row = f"{key.tenant}{key.session_id} ".encode()
            if _occurs(self._path, row):
                self._writer.execute("VACUUM")
                self._empty_log()

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def _create_tables(self) -> None:
        with self._transaction() as connection:
            (schema_version,) = connection.execute("PRAGMA user_version").fetchone()
            if schema_version > _SCHEMA_VERSION:
                raise StoreMisconfigured(f"the store's index has schema {schema_version}, newer than this server's")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS sessions (tenant TEXT NOT NULL, session_id TEXT NOT NULL,"
                " head BLOB NOT NULL, PRIMARY KEY (tenant, session_id)) WITHOUT ROWID"
            )
            connection.execute(
                "CREATE TABLE IF NOT EXISTS quarantined (generation TEXT NOT NULL PRIMARY KEY,"
                " tenant TEXT NOT NULL, session_id TEXT NOT NULL) WITHOUT ROWID"
            )
            if schema_version == 1:
                blanks = b" " * _IN_PAGE_NUM_BYTES
                connection.execute("UPDATE sessions SET head = CAST(? || head AS BLOB)", (blanks,))
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        if schema_version == 1:
            self._writer.execute("VACUUM")
            self._empty_log()

    def _empty_log(self) -> None:
        (is_busy, _, _) = self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise sqlite3.OperationalError("another process reads it, and what was deleted cannot be overwritten")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException as error:
                if isinstance(error, sqlite3.Error):
                    # It may have been applied after all.
                    self._usage = None
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise


def _count(usage: dict[str, TenantUsage], tenant: str, before: Head | None, after: Head | None) -> None:
    counted = usage.get(tenant, _NOTHING)
    usage[tenant] = TenantUsage(
        counted.num_sessions + (after is not None) - (before is not None),
        counted.num_bytes + stored_num_bytes(after) - stored_num_bytes(before),
    )


def _occurs(path: Path, text: bytes) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(text) >= 0


def _encode(head: Head) -> bytes:
    return b" " * _IN_PAGE_NUM_BYTES + encode_head(head)


def _readable(raw: bytes) -> Head | None:
    try:
        return decode_head(raw)
    except StateCorrupt:
        return None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA page_size = {_PAGE_NUM_BYTES}")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _read(connection: sqlite3.Connection, key: SessionKey) -> Head | None:
    row = connection.execute(
        "SELECT head FROM sessions WHERE tenant = ? AND session_id = ?", (key.tenant, key.session_id)
    ).fetchone()
    return decode_head(row[0]) if row else None
