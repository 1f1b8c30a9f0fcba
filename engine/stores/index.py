"""The local store's index: one row per session, the head in it, in SQLite (WAL, synchronous=FULL).

Errors are `sqlite3.Error`s; the store gives them their names. One connection writes and another reads, each behind its
own lock, so that a read does not wait for a commit's fsync.
"""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import StateCorrupt, StoreMisconfigured
from engine.stores.base import Head, SessionKey
from engine.stores.blobs import sync_directory
from engine.stores.head_json import decode_head, encode_head

_SCHEMA_VERSION = 1


class Index:
    def __init__(self, path: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        self._writer = _connect(path)
        self._reader = _connect(path)
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        try:
            self._create_table()
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
        with self._transaction() as connection:
            head = decide(_read(connection, key))
            if head is None:
                connection.execute(
                    "DELETE FROM sessions WHERE tenant = ? AND session_id = ?", (key.tenant, key.session_id)
                )
            else:
                connection.execute(
                    "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?)", (key.tenant, key.session_id, encode_head(head))
                )

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

    def close(self) -> None:
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def _create_table(self) -> None:
        with self._transaction() as connection:
            (schema_version,) = connection.execute("PRAGMA user_version").fetchone()
            if schema_version > _SCHEMA_VERSION:
                raise StoreMisconfigured(f"the store's index has schema {schema_version}, newer than this server's")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS sessions (tenant TEXT NOT NULL, session_id TEXT NOT NULL,"
                " head BLOB NOT NULL, PRIMARY KEY (tenant, session_id)) WITHOUT ROWID"
            )
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise


def _readable(raw: bytes) -> Head | None:
    try:
        return decode_head(raw)
    except StateCorrupt:
        return None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _read(connection: sqlite3.Connection, key: SessionKey) -> Head | None:
    row = connection.execute(
        "SELECT head FROM sessions WHERE tenant = ? AND session_id = ?", (key.tenant, key.session_id)
    ).fetchone()
    return decode_head(row[0]) if row else None
