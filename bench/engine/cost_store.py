"""What our encoding adds to a save and a load: the local store against the system calls and the index commit alone.

The bare version writes the same number of bytes to a temporary file, fsyncs, renames, fsyncs the directory, commits a
row of the same size in SQLite with the same settings and removes the file before; it reads row and file back. Both are
timed in turns, in one folder, so that the disk's mood meets both.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from atlas_model.config import AtlasConfig
from bench.clock import seconds_of
from bench.stored_session import StoredSession
from engine.sequence import SequenceState
from engine.stores.head_json import encode_head
from engine.stores.local import LocalStore


@dataclass(frozen=True, slots=True)
class StoreCost:
    """Medians of `num_rounds`; a ratio is the median of the rounds' own ratios."""

    num_rounds: int
    snapshot_num_bytes: int
    save_seconds: float
    bare_save_seconds: float
    save_ratio: float
    load_seconds: float
    bare_load_seconds: float
    load_ratio: float


class BareCalls:
    """The system calls of a commit and of a load, with nothing around them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._previous: Path | None = None
        self._number = 0
        self._index = sqlite3.connect(folder / "index.sqlite3", isolation_level=None)
        self._index.execute("PRAGMA journal_mode = WAL")
        self._index.execute("PRAGMA synchronous = FULL")
        self._index.execute("CREATE TABLE head (id TEXT PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def save(self, payload: bytes, row: bytes) -> None:
        self._number += 1
        path = self._folder / f"blob-{self._number}"
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        view = memoryview(payload)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
        os.close(descriptor)
        os.rename(temporary, path)
        directory = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(directory)
        os.close(directory)
        self._index.execute("INSERT OR REPLACE INTO head VALUES (?, ?)", (path.name, row))
        if self._previous is not None:
            self._previous.unlink()
        self._previous = path

    def load(self) -> bytes:
        assert self._previous is not None
        self._index.execute("SELECT value FROM head WHERE id = ?", (self._previous.name,)).fetchone()
        return self._previous.read_bytes()

    def close(self) -> None:
        self._index.close()


def measure_store(
    state: SequenceState, config: AtlasConfig, fingerprint: str, num_rounds: int, folder: Path | None = None
) -> StoreCost:
    """Save and load one session `num_rounds` times each way, below `folder` (default: the temporary one)."""
    with tempfile.TemporaryDirectory(prefix="atlas-cost-", dir=folder) as name:
        store = LocalStore(Path(name) / "store")
        bare = BareCalls(Path(name) / "bare")
        session = StoredSession(store, "cost", config, fingerprint, state, extra=b"")
        try:
            head = session.save()
            payload, row = os.urandom(head.num_bytes), encode_head(head)
            bare.save(payload, row)
            saves = [(seconds_of(session.save), seconds_of(lambda: bare.save(payload, row))) for _ in range(num_rounds)]
            loads = [(seconds_of(session.load), seconds_of(bare.load)) for _ in range(num_rounds)]
            num_bytes = head.num_bytes
        finally:
            store.close()
            bare.close()
    return StoreCost(
        num_rounds=num_rounds,
        snapshot_num_bytes=num_bytes,
        save_seconds=median(ours for ours, _ in saves),
        bare_save_seconds=median(theirs for _, theirs in saves),
        save_ratio=median(ours / theirs for ours, theirs in saves),
        load_seconds=median(ours for ours, _ in loads),
        bare_load_seconds=median(theirs for _, theirs in loads),
        load_ratio=median(ours / theirs for ours, theirs in loads),
    )
