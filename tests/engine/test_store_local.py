import os
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engine.errors import StateCorrupt, StateLost, StoreMisconfigured, StoreUnavailable
from engine.stores import open_store
from engine.stores.local import LocalStore
from engine.stores.succession import DEFAULT_NUM_KEPT
from tests.engine.store_cases import KEY, PART_NUM_BYTES, commit_number, generation_of, whole_number


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions"


def blob_names(directory: Path) -> set[str]:
    return {path.name for path in (directory / "blobs").iterdir()}


def test_what_was_committed_is_there_for_the_next_server(directory: Path) -> None:
    store = LocalStore(directory)
    head = commit_number(store, 1, base=None)
    store.close()
    store = LocalStore(directory)
    assert store.durability == "disk"
    assert store.read_head(KEY) == head
    assert whole_number(store) == 1
    assert commit_number(store, 2, base=head).version == 2
    store.close()


def test_a_second_server_on_the_same_directory_is_refused_and_told_who_has_it(directory: Path) -> None:
    store = LocalStore(directory)
    with pytest.raises(StoreMisconfigured, match=rf"in use by another server \(process {os.getpid()}\)"):
        LocalStore(directory)
    code = f"from engine.stores import open_store\nopen_store({f'local://{directory}'!r})"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, text=True)
    assert f"in use by another server (process {os.getpid()})" in child.stderr
    assert whole_number_after_commit(store) == 1
    store.close()
    LocalStore(directory).close()


def whole_number_after_commit(store: LocalStore) -> int:
    commit_number(store, 1, base=None)
    return whole_number(store)


def test_nobody_else_on_the_machine_can_read_a_session(directory: Path) -> None:
    store = LocalStore(directory)
    commit_number(store, 1, base=None)
    for path in [directory, *directory.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    store.close()


def test_temporary_files_and_orphans_are_swept_at_start_and_nothing_else(directory: Path) -> None:
    store = LocalStore(directory)
    first = commit_number(store, 1, base=None)
    commit_number(store, 2, base=first)
    store.quarantine(KEY, first.committed)
    living = blob_names(directory)
    store.close()
    (directory / "blobs" / f"{'0' * 32}.abcd.tmp").write_bytes(b"half")
    (directory / "blobs" / ("1" * 32)).write_bytes(b"never flipped to")
    store = LocalStore(directory)
    assert blob_names(directory) == living
    assert {path.name for path in (directory / "quarantine").iterdir()} == {first.generation}
    assert whole_number(store) == 2
    assert whole_number(store, version=1) == 1
    store.close()


def test_a_session_takes_the_disk_of_the_kept_generations_however_often_it_commits(directory: Path) -> None:
    store = LocalStore(directory)
    head = None
    for number in range(1, 20):
        head = commit_number(store, number, base=head)
    assert len(blob_names(directory)) == 1 + DEFAULT_NUM_KEPT
    store.delete(KEY)
    assert blob_names(directory) == set()
    store.close()


def test_a_lost_blob_is_state_lost_and_names_the_version_that_is_still_whole(directory: Path) -> None:
    store = LocalStore(directory)
    first = commit_number(store, 1, base=None)
    second = commit_number(store, 2, base=first)
    (directory / "blobs" / second.generation).unlink()
    for _ in range(2):
        with pytest.raises(StateLost) as caught:
            store.load(KEY)
        assert caught.value.last_whole_version == 1
    assert store.read_head(KEY) == second
    assert whole_number(store, version=1) == 1
    (directory / "blobs" / first.generation).unlink()
    with pytest.raises(StateLost) as caught:
        store.load_extra(KEY)
    assert caught.value.last_whole_version is None
    store.close()


def test_a_cut_or_grown_blob_is_corrupt_and_stays_where_it_is(directory: Path) -> None:
    store = LocalStore(directory)
    head = commit_number(store, 1, base=None)
    path = directory / "blobs" / head.generation
    whole = path.read_bytes()
    for wrong in (whole[:-1], whole[: PART_NUM_BYTES // 2], b"", whole + b"x"):
        path.write_bytes(wrong)
        with pytest.raises(StateCorrupt):
            store.load(KEY)
        with pytest.raises(StateCorrupt):
            store.load_extra(KEY)
        assert path.read_bytes() == wrong
    path.write_bytes(whole)
    assert whole_number(store) == 1
    store.close()


def test_a_flipped_bit_in_the_stored_answers_is_found(directory: Path) -> None:
    store = LocalStore(directory)
    head = commit_number(store, 1, base=None)
    path = directory / "blobs" / head.generation
    flipped = bytearray(path.read_bytes())
    flipped[-2] ^= 4
    path.write_bytes(flipped)
    with pytest.raises(StateCorrupt):
        store.load_extra(KEY)
    assert whole_number(store) == 1
    store.close()


def test_a_quarantined_blob_outlives_its_session_and_every_sweep(directory: Path) -> None:
    store = LocalStore(directory)
    head = commit_number(store, 1, base=None)
    whole = (directory / "blobs" / head.generation).read_bytes()
    store.quarantine(KEY, head.committed)
    store.delete(KEY)
    store.close()
    LocalStore(directory).close()
    assert (directory / "quarantine" / head.generation).read_bytes() == whole


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


def test_a_disk_that_is_full_loses_nothing_and_leaves_no_file(directory: Path) -> None:
    store = LocalStore(directory)
    commit_number(store, 1, base=None)
    store.close()
    # The kernel refuses to let a file grow beyond the limit: a real failure of a real write, half-way.
    program = f"""
        import resource, signal
        from engine.errors import StoreFull
        from engine.stores import open_store
        from tests.engine.store_cases import KEY, PART_NUM_BYTES, commit_number
        store = open_store({f"local://{directory}"!r})
        head = store.read_head(KEY)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * PART_NUM_BYTES, resource.RLIM_INFINITY))
        try:
            commit_number(store, 2, base=head)
        except StoreFull as error:
            assert error.code == "store_full"
        else:
            raise SystemExit("the write was not refused")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert store.read_head(KEY) == head
        assert commit_number(store, 3, base=head).version == 2
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True)
    assert len(blob_names(directory)) == 2
    store = LocalStore(directory)
    assert whole_number(store) == 3
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
