import os
import stat
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine import failpoints
from engine.errors import StateCorrupt, StateLost, StoreFull, StoreMisconfigured
from engine.stores import open_store
from engine.stores.base import SessionKey
from engine.stores.blobs import BlobDirectory
from engine.stores.head import stored_num_bytes
from engine.stores.index import Index
from engine.stores.local import LocalStore
from engine.stores.local_sweep import QUARANTINE_SECONDS, sweep_quarantine
from engine.stores.succession import DEFAULT_NUM_KEPT
from tests.engine.store_cases import KEY, PART_NUM_BYTES, blob_names, commit_number, generation_of, whole_number


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "data" / "sessions"


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


@pytest.mark.usefixtures("disarmed")
def test_a_retry_drops_what_its_first_try_has_not_come_to_drop(directory: Path) -> None:
    store = LocalStore(directory, num_kept=0)
    head = commit_number(store, 1, base=None)
    new = generation_of(2)
    failpoints.arm("commit.after_flip=1:EIO")
    with pytest.raises(StoreFull):
        store.commit(KEY, head, new)
    assert blob_names(directory) == {head.generation, new.generation}
    assert store.commit(KEY, head, new).version == 2
    assert blob_names(directory) == {new.generation}
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


def test_a_quarantined_blob_outlives_its_generation_and_every_sweep_and_goes_with_its_session(directory: Path) -> None:
    store = LocalStore(directory, num_kept=0)
    head = commit_number(store, 1, base=None)
    whole = (directory / "blobs" / head.generation).read_bytes()
    store.quarantine(KEY, head.committed)
    commit_number(store, 2, base=head)
    store.close()
    store = LocalStore(directory)
    assert head.generation not in blob_names(directory)
    assert (directory / "quarantine" / head.generation).read_bytes() == whole
    store.delete(KEY)
    assert not list((directory / "quarantine").iterdir())
    store.close()


def test_a_quarantined_blob_is_swept_after_thirty_days(directory: Path) -> None:
    store = LocalStore(directory, num_kept=0)
    head = commit_number(store, 1, base=None)
    store.quarantine(KEY, head.committed)
    store.close()
    quarantined = BlobDirectory(directory / "quarantine")
    quarantined.write("of-an-older-server", [b"whose, nobody knows"])
    index = Index(directory / "index.sqlite3")
    now = time.time()
    sweep_quarantine(index, quarantined, now + QUARANTINE_SECONDS - 60)
    assert set(quarantined.names()) == {head.generation, "of-an-older-server"}
    assert index.quarantined() == [(head.generation, KEY)]
    sweep_quarantine(index, quarantined, now + QUARANTINE_SECONDS + 60)
    assert quarantined.names() == []
    assert index.quarantined() == []
    index.close()


@pytest.mark.parametrize("num_short", [0, 1])
def test_a_local_quota_is_of_all_sessions_and_a_refused_blob_is_not_left(directory: Path, num_short: int) -> None:
    first = LocalStore(directory)
    size = stored_num_bytes(commit_number(first, 1, base=None))
    first.close()
    max_num_bytes = 3 * size - num_short
    store = open_store(f"local://{directory}?max_bytes={max_num_bytes}", num_kept=1)
    head = commit_number(store, 2, base=store.read_head(KEY))
    others = [SessionKey("another", "s"), SessionKey("tenant", "t")]
    for other in others[: 1 - num_short]:
        commit_number(store, 3, base=None, key=other)
    living = blob_names(directory)
    for other in others[1 - num_short :]:
        with pytest.raises(StoreFull, match=f"may hold {max_num_bytes} bytes: "):
            commit_number(store, 3, base=None, key=other)
        assert blob_names(directory) == living
    # One generation for another takes no room.
    commit_number(store, 4, base=head)
    for key in (others[0], KEY):
        store.delete(key)
    assert commit_number(store, 5, base=None, key=others[1]).version == 1
    assert len(blob_names(directory)) == 1
    store.close()


def test_creations_at_once_never_pass_the_local_quota(directory: Path) -> None:
    store = LocalStore(directory)
    size = stored_num_bytes(commit_number(store, 1, base=None))
    store.close()
    store = LocalStore(directory, max_num_bytes=size * 4)
    with ThreadPoolExecutor(8) as threads:
        keys = [SessionKey("tenant", f"s{number}") for number in range(24)]
        outcomes = [threads.submit(commit_number, store, 1, None, key) for key in keys]
    failures = [outcome.exception() for outcome in outcomes]
    assert failures.count(None) == 3
    assert all(failure is None or isinstance(failure, StoreFull) for failure in failures)
    assert len(blob_names(directory)) == 4
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


@pytest.mark.usefixtures("disarmed")
def test_a_session_has_its_time_from_the_flip_on_and_is_never_seen_as_one_that_has_ended(directory: Path) -> None:
    store = LocalStore(directory)
    time.sleep(1.1)
    failpoints.arm("commit.after_flip=1:error")
    with pytest.raises(StoreFull):
        store.create(KEY, generation_of(1, ttl_seconds=1))
    assert whole_number(store) == 1
    store.close()
