"""What a local store finds when it is opened: URLs and options, lost and foreign indices, another server."""

import sqlite3
from pathlib import Path

import pytest

from engine.errors import StoreMisconfigured, StoreUnavailable
from engine.stores import local_options, open_store
from engine.stores.base import TenantUsage
from engine.stores.head import stored_num_bytes
from engine.stores.head_json import encode_head
from engine.stores.local import LocalStore
from tests.engine.store_cases import KEY, blob_names, commit_number, generation_of, whole_number


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions"


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("1", 1), ("4096B", 4096), ("500MB", 500 * 10**6), ("10GB", 10**10), ("2k", 2000), ("1T", 10**12)],
)
def test_a_size_is_read_as_it_is_written(text: str, num_bytes: int) -> None:
    assert local_options(f"/data?max_bytes={text}") == (Path("/data"), num_bytes)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("max_bytes=", "max_bytes"),
        ("max_bytes=0", "max_bytes"),
        ("max_bytes=-1", "max_bytes"),
        ("max_bytes=1.5GB", "max_bytes"),
        ("max_bytes=10GiB", "max_bytes"),
        ("max_bytes=10g", "max_bytes"),
        ("max_bytes=1&max_bytes=2", "max_bytes"),
        ("max_byte=1", "'max_byte'"),
        ("max_bytes=1&prefix=x", "'prefix'"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_by_name(directory: Path, query: str, reason: str) -> None:
    with pytest.raises(StoreMisconfigured, match=reason):
        open_store(f"local://{directory}?{query}")
    assert not directory.exists()


def test_a_lost_index_beside_snapshots_stops_the_start_instead_of_sweeping_them(directory: Path) -> None:
    store = LocalStore(directory)
    commit_number(store, 1, base=None)
    store.close()
    living = blob_names(directory)
    for path in directory.glob("index.sqlite3*"):
        path.unlink()
    with pytest.raises(StoreMisconfigured, match="is gone"):
        LocalStore(directory)
    assert blob_names(directory) == living


def test_an_index_of_a_newer_schema_stops_the_start(directory: Path) -> None:
    LocalStore(directory).close()
    with sqlite3.connect(directory / "index.sqlite3") as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for _ in range(2):
        with pytest.raises(StoreMisconfigured, match="schema 99"):
            LocalStore(directory)


def test_an_index_of_the_first_schema_is_taken_over_with_nothing_of_what_it_had_deleted(directory: Path) -> None:
    store = LocalStore(directory)
    head = commit_number(store, 1, base=None)
    store.close()
    path = directory / "index.sqlite3"
    path.unlink()
    old = sqlite3.connect(path, isolation_level=None)
    old.execute("PRAGMA journal_mode = WAL")
    old.execute("PRAGMA secure_delete = OFF")
    old.execute(
        "CREATE TABLE sessions (tenant TEXT NOT NULL, session_id TEXT NOT NULL, head BLOB NOT NULL,"
        " PRIMARY KEY (tenant, session_id)) WITHOUT ROWID"
    )
    old.execute("PRAGMA user_version = 1")
    old.execute("INSERT INTO sessions VALUES (?, ?, ?)", (KEY.tenant, KEY.session_id, encode_head(head)))
    old.execute("INSERT INTO sessions VALUES ('tenant', 'gone', ?)", (b"private-mark" * 900,))
    old.execute("DELETE FROM sessions WHERE session_id = 'gone'")
    old.close()
    assert b"private-mark" in path.read_bytes()
    for _ in range(2):
        store = LocalStore(directory)
        assert b"private-mark" not in b"".join(file.read_bytes() for file in directory.glob("index*"))
        assert store.read_head(KEY) == head
        assert whole_number(store) == 1
        assert store.usage(KEY.tenant) == TenantUsage(1, stored_num_bytes(head))
        store.close()
    store = LocalStore(directory)
    store.quarantine(KEY, head.committed)
    assert commit_number(store, 2, base=head).version == 2
    store.close()


def test_a_file_that_is_no_index_stops_the_start_and_nothing_is_swept(directory: Path) -> None:
    store = LocalStore(directory)
    commit_number(store, 1, base=None)
    store.close()
    living = blob_names(directory)
    (directory / "blobs" / ("1" * 32)).write_bytes(b"perhaps of value")
    (directory / "index.sqlite3").write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnavailable, match="cannot be read"):
        LocalStore(directory)
    assert blob_names(directory) == {*living, "1" * 32}


def test_one_head_that_cannot_be_read_harms_no_other_session_and_stops_the_sweep(directory: Path) -> None:
    store = LocalStore(directory)
    commit_number(store, 1, base=None)
    store.close()
    connection = sqlite3.connect(directory / "index.sqlite3")
    connection.execute("INSERT INTO sessions VALUES ('tenant', 'broken', x'7b7d')")
    connection.commit()
    connection.close()
    (directory / "blobs" / ("1" * 32)).write_bytes(b"may belong to the broken one")
    store = LocalStore(directory)
    assert whole_number(store) == 1
    assert "1" * 32 in blob_names(directory)
    assert [session_id for session_id, _ in store.list_sessions("tenant", 10)] == [KEY.session_id]
    store.close()


def test_a_directory_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable):
        LocalStore(tmp_path / "file" / "sessions")


@pytest.mark.parametrize(
    "url", ["local://relative/path", "local://", "file:///tmp", "memory", "", "memory://x", "redis"]
)
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(StoreMisconfigured, match="local:///absolute/path"):
        open_store(url)


def test_odd_paths_are_taken_literally(tmp_path: Path) -> None:
    directory = tmp_path / "a b?c#d%41"
    open_store(f"local://{directory}").close()
    assert (directory / "index.sqlite3").exists()


def test_a_store_can_be_opened_again_after_a_failed_start(directory: Path) -> None:
    store = LocalStore(directory)
    store.commit(KEY, None, generation_of(1))
    store.close()
    (directory / "index.sqlite3").rename(directory / "aside")
    with pytest.raises(StoreMisconfigured):
        LocalStore(directory)
    (directory / "aside").rename(directory / "index.sqlite3")
    store = LocalStore(directory)
    assert whole_number(store) == 1
    store.close()
