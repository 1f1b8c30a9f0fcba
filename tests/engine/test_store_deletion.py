"""Deletion that really deletes, judged by the bytes that are left: in files, in Redis, and whatever a reader sees."""

import random
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from engine import failpoints
from engine.errors import SessionNotFound, StoreFull, StoreUnavailable
from engine.stores import open_store
from engine.stores.base import Head, NewGeneration, SessionKey, Store
from engine.stores.index import Index
from engine.stores.local import LocalStore
from engine.stores.redis import GRACE_SECONDS, STAGING_SECONDS
from engine.stores.succession import next_head
from tests.engine.store_cases import KEY, NUM_KEPT, commit_number, generation_of, whole_number
from tests.redis_server import RedisServer

OTHER = SessionKey(KEY.tenant, "session:10")
MARK = b"private-mark"


def marked(number: int, mark: bytes = MARK) -> NewGeneration:
    """A generation with the mark in everything that a client can put there."""
    text = mark.decode()
    return replace(
        generation_of(number),
        parts=[mark * 500, mark * 300],
        metadata={"note": text * 9, text: "name"},
        extra=mark * 40,
    )


def commit_marked(store: Store, number: int, base: Head | None, key: SessionKey = KEY, mark: bytes = MARK) -> Head:
    return store.commit(key, base, marked(number, mark))


def live_through_much(store: Store) -> None:
    """More commits than a head remembers, a name, copies in quarantine of what is kept and of what is dropped, and a
    commit that failed."""
    head = commit_marked(store, 1, None)
    store.quarantine(KEY, head.committed)
    head = store.name_version(KEY, 1, "private-mark")
    for number in range(2, 24):
        head = commit_marked(store, number, head)
        if number % 8 == 0:
            store.quarantine(KEY, head.committed)
    failpoints.arm("commit.before_flip=1:error")
    with pytest.raises((StoreUnavailable, StoreFull)):
        commit_marked(store, 24, head)
    failpoints.disarm()
    store.acquire_lease(KEY, "private-mark", 60)
    store.release_lease(KEY, "private-mark")


def remains(directory: Path, *texts: bytes) -> list[str]:
    return [path.name for path in directory.rglob("*") if path.is_file() and any(t in path.read_bytes() for t in texts)]


@pytest.mark.usefixtures("disarmed")
def test_no_file_has_a_byte_of_a_deleted_session(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, NUM_KEPT)
    commit_number(store, 1, base=None, key=OTHER)
    live_through_much(store)
    assert remains(tmp_path, MARK)
    assert store.delete(KEY) is True
    assert remains(tmp_path, MARK) == []
    assert not list((tmp_path / "quarantine").iterdir())
    assert whole_number(store, OTHER) == 1
    store.close()


def test_no_row_is_left_behind_where_the_index_has_moved_it(tmp_path: Path) -> None:
    rng = random.Random(1)
    index = Index(tmp_path / "index.sqlite3")
    alive: set[int] = set()
    for number in range(200):
        which = rng.randrange(30)
        key, text = SessionKey("tenant", f"session-{which:03}"), f"mark-{which:03};"
        if which in alive and rng.random() < 0.3:
            index.update(key, lambda _: None)
            index.erase(key)
            alive.remove(which)
            assert remains(tmp_path, text.encode(), key.session_id.encode()) == []
        else:
            new = replace(generation_of(number), parts=(), metadata={"note": text * rng.choice([5, 60, 150, 600])})
            head = next_head(None, new, 1, 0)
            index.update(key, lambda _, head=head: head)  # type: ignore[misc]
            alive.add(which)
    assert {key.session_id for key, _ in index.all_heads()} == {f"session-{which:03}" for which in alive}
    index.close()


def test_what_was_deleted_without_being_overwritten_is_found(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit_number(store, 1, base=None, key=OTHER)
    careless = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
    careless.execute("PRAGMA secure_delete = OFF")
    careless.execute("INSERT INTO sessions VALUES (?, ?, ?)", (KEY.tenant, KEY.session_id, b"  " + MARK))
    careless.execute("DELETE FROM sessions WHERE session_id = ?", (KEY.session_id,))
    careless.close()
    assert remains(tmp_path, MARK)
    assert store.delete(KEY) is False
    assert remains(tmp_path, MARK) == []
    assert whole_number(store, OTHER) == 1
    store.close()


@pytest.mark.usefixtures("disarmed")
def test_a_blob_that_could_not_be_dropped_goes_with_its_session(tmp_path: Path) -> None:
    store = LocalStore(tmp_path, num_kept=0)
    head = commit_marked(store, 1, None)
    failpoints.arm("commit.before_drop=1:EIO")
    commit_marked(store, 2, head)
    assert len(list((tmp_path / "blobs").iterdir())) == 2
    failpoints.arm("commit.before_drop=1:EIO")
    with pytest.raises(StoreFull):
        store.delete(KEY)
    failpoints.disarm()
    assert store.read_head(KEY) is None
    assert store.delete(KEY) is False
    assert remains(tmp_path, MARK) == []
    store.close()


def test_a_deletion_that_another_process_keeps_from_erasing_says_so_and_can_be_repeated(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit_marked(store, 1, None)
    reader = sqlite3.connect(tmp_path / "index.sqlite3", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT head FROM sessions").fetchone()
    with pytest.raises(StoreUnavailable, match="another process reads"):
        store.delete(KEY)
    reader.close()
    assert store.delete(KEY) is False
    assert remains(tmp_path, MARK) == []
    store.close()


@pytest.fixture
def raw(redis_server: RedisServer) -> "redis.Redis":
    return redis.Redis(port=redis_server.port, protocol=2)


def keys_with(raw: "redis.Redis", text: str) -> set[str]:
    """Keys whose name or value has the text."""
    found = set()
    for name in raw.scan_iter("*"):
        if text.encode() in name or text.encode() in (raw.dump(name) or b""):
            found.add(name.decode(errors="replace"))
    return found


@pytest.mark.redis
@pytest.mark.usefixtures("disarmed")
@pytest.mark.parametrize("store_url", ["redis"], indirect=True)
def test_no_key_has_a_byte_of_a_deleted_session(store_url: str, raw: "redis.Redis") -> None:
    prefix = store_url.partition("prefix=")[2]
    session = f"{prefix}:{{{KEY.tenant}/{KEY.session_id}}}:"
    store = open_store(store_url, NUM_KEPT)
    commit_number(store, 1, base=None, key=OTHER)
    others = keys_with(raw, prefix)
    live_through_much(store)
    # All of the 24 generations, and copies of three.
    assert len([name for name in keys_with(raw, session) if ":p:" in name]) == (24 + 3) * 2
    assert store.delete(KEY) is True
    assert keys_with(raw, session) == set()
    assert keys_with(raw, prefix) == others
    assert raw.zrange(f"{prefix}:index:{KEY.tenant}", 0, -1) == [OTHER.session_id.encode()]
    assert OTHER.session_id.encode() in raw.hgetall(f"{prefix}:usage:{{{prefix}:index:{KEY.tenant}}}")
    assert whole_number(store, OTHER) == 1
    store.close()


@pytest.mark.redis
@pytest.mark.parametrize("store_url", ["redis"], indirect=True)
@pytest.mark.parametrize("looking", ["list", "recount", "delete"])
def test_what_a_lost_head_has_left_is_found_and_goes(looking: str, store_url: str, raw: "redis.Redis") -> None:
    prefix = store_url.partition("prefix=")[2]
    session = f"{prefix}:{{{KEY.tenant}/{KEY.session_id}}}:"
    store = open_store(store_url, NUM_KEPT)
    head = None
    for number in range(1, 6):
        head = store.commit(KEY, head, replace(marked(number), log=MARK))
    raw.delete(f"{session}head")
    orphans = {name for name in keys_with(raw, session) if raw.ttl(name) == -1}
    # Parts and extras, the token log, and what remembers all of them.
    assert len(orphans) == (1 + NUM_KEPT) * 3 + 1 + 1
    if looking == "list":
        assert store.list_sessions(KEY.tenant, 10) == []
    elif looking == "recount":
        assert store.recount(KEY.tenant).num_sessions == 0
    else:
        assert store.delete(KEY) is False
        assert keys_with(raw, session) == set()
    assert all(0 < raw.ttl(name) <= max(STAGING_SECONDS, GRACE_SECONDS) for name in keys_with(raw, session))
    # The id is free, and what is made under it lasts.
    commit_number(store, 9, base=None)
    assert whole_number(store) == 9
    assert raw.ttl(f"{session}generations") == -1
    assert store.delete(KEY) is True
    assert keys_with(raw, session) == set()
    store.close()


@pytest.mark.redis
@pytest.mark.parametrize("store_url", ["redis"], indirect=True)
def test_what_is_remembered_of_generations_is_no_more_than_has_keys(store_url: str, raw: "redis.Redis") -> None:
    prefix = store_url.partition("prefix=")[2]
    remembered = f"{prefix}:{{{KEY.tenant}/{KEY.session_id}}}:generations"
    store = open_store(store_url, NUM_KEPT)
    head = None
    for number in range(1, 31):
        head = commit_number(store, number, base=head)
    assert head is not None
    assert raw.zcount(remembered, "+inf", "+inf") == 1 + NUM_KEPT
    # Their keys have expired.
    now = time.time() * 1000
    dropped: list[bytes] = raw.zrangebyscore(remembered, "-inf", "(+inf")  # type: ignore[assignment]
    raw.zadd(remembered, dict.fromkeys(dropped, now - 1000))
    head = commit_number(store, 31, base=head)
    assert raw.zcard(remembered) == 1 + NUM_KEPT + 1
    assert raw.zcount(remembered, "+inf", "+inf") == 1 + NUM_KEPT
    store.close()


@pytest.mark.parametrize("ending", ["deleted", "deleted and made anew"])
def test_a_reader_of_a_session_that_is_being_deleted_gets_it_whole_or_not_at_all(store: Store, ending: str) -> None:
    done = threading.Event()
    seen: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                with suppress(SessionNotFound):
                    seen.append(whole_number(store))
                    assert store.load_extra(KEY).startswith(b"extra ")
        except BaseException as error:
            failures.append(error)
            raise

    readers = [threading.Thread(target=read) for _ in range(3)]
    head = commit_number(store, 0, base=None)
    for reader in readers:
        reader.start()
    for number in range(1, 19):
        head = commit_number(store, number, base=head)
        time.sleep(0.005)
        if number % 3 == 0:
            assert store.delete(KEY) is True
            if ending == "deleted":
                with pytest.raises(SessionNotFound):
                    store.load(KEY)
            head = commit_number(store, number, base=None)
    done.set()
    for reader in readers:
        reader.join()
    assert not failures
    assert len(set(seen)) > 1
