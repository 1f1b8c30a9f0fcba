"""The token log of a session in every store: it grows by what is committed, and by nothing else."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from engine.errors import CommitConflict, LogLost, StateCorrupt, StoreFull
from engine.stores import open_store
from engine.stores.base import Head, SessionKey, Store
from engine.stores.head_json import decode_head, encode_head
from engine.stores.local import LocalStore
from engine.stores.redis import RedisStore
from engine.stores.redis_log import MAX_LOG_NUM_BYTES
from engine.stores.succession import next_head
from tests.engine.store_cases import (
    KEY,
    commit_number,
    generation_of,
    log_of,
    logged_generation_of,
    logged_numbers,
    whole_number,
)
from tests.redis_server import RedisServer

PREFIX = f"logs:{{{KEY.tenant}/{KEY.session_id}}}:"


def commit(store: Store, number: int, base: Head | None, key: SessionKey = KEY) -> Head:
    return store.commit(key, base, logged_generation_of(number))


def log_of_head(store: Store, head: Head) -> bytes:
    assert head.log_id is not None
    assert head.log_num_bytes is not None
    return bytes(store.load_log(KEY, head.log_id, head.log_num_bytes))


def test_a_log_is_what_the_commits_have_appended_in_their_order(store: Store) -> None:
    head = None
    for number in range(1, 6):
        head = commit(store, number, head)
        assert head == store.read_head(KEY)
        assert logged_numbers(store) == list(range(1, number + 1))
        assert head.committed.log_num_bytes == head.log_num_bytes == len(log_of_head(store, head))
    assert head is not None
    assert head.log_id is not None
    for generation in head.kept:
        assert generation.log_num_bytes is not None
        prefix = b"".join(log_of(number) for number in range(1, generation.version + 1))
        assert store.load_log(KEY, head.log_id, generation.log_num_bytes) == prefix


def test_a_session_without_a_log_has_none(store: Store) -> None:
    head = commit_number(store, 1, base=None)
    assert (head.log_id, head.log_num_bytes) == (None, None)
    with pytest.raises(LogLost):
        store.load_log(KEY, head.generation, 1)


def test_a_log_may_begin_empty_and_a_commit_may_append_nothing(store: Store) -> None:
    head = store.create(KEY, replace(generation_of(0), log=b""))
    assert (head.log_num_bytes, log_of_head(store, head)) == (0, b"")
    head = commit(store, 1, head)
    head = store.commit(KEY, head, replace(generation_of(2), log=b""))
    assert log_of_head(store, head) == log_of(1)
    assert logged_numbers(store) == [1]
    commit(store, 3, head)
    assert logged_numbers(store) == [1, 3]


def test_a_log_of_many_megabytes_may_begin_at_once(store: Store) -> None:
    long = b"".join(number.to_bytes(4, "little") for number in range(2_400_000))
    head = store.create(KEY, replace(generation_of(0), log=long))
    assert log_of_head(store, head) == long
    head = commit(store, 1, head)
    assert log_of_head(store, head) == long + log_of(1)


def test_a_writer_that_loses_leaves_the_log_as_it_was(store: Store) -> None:
    first = commit(store, 1, None)
    second = commit(store, 2, first)
    for base in (None, first):
        with pytest.raises(CommitConflict):
            commit(store, 99, base)
    assert log_of_head(store, second) == log_of(1) + log_of(2)
    commit(store, 3, second)
    assert logged_numbers(store) == [1, 2, 3]


def test_a_retried_commit_is_logged_once_even_when_another_followed(store: Store) -> None:
    first = commit(store, 1, None)
    new = logged_generation_of(2)
    second = store.commit(KEY, first, new)
    assert store.commit(KEY, first, new) == second
    commit(store, 3, second)
    assert store.commit(KEY, first, new) == second
    assert logged_numbers(store) == [1, 2, 3]


def test_a_session_made_anew_has_nothing_of_the_old_ones_log(store: Store) -> None:
    old = commit(store, 5, None)
    assert store.delete(KEY) is True
    assert old.log_id is not None
    with pytest.raises(LogLost):
        store.load_log(KEY, old.log_id, 1)
    commit(store, 1, None)
    assert logged_numbers(store) == [1]


def test_a_log_ends_with_a_commit_that_brings_none(store: Store) -> None:
    first = commit(store, 1, None)
    second = commit_number(store, 2, base=first)
    assert (second.log_id, second.log_num_bytes) == (None, None)
    assert commit_number(store, 3, base=second).log_id is None


def test_a_name_leaves_the_log_alone(store: Store) -> None:
    commit(store, 1, None)
    named = store.name_version(KEY, 1, "first")
    commit(store, 2, named)
    assert logged_numbers(store) == [1, 2]


def test_a_log_ends_with_its_session(store: Store) -> None:
    head = store.commit(KEY, None, logged_generation_of(1, ttl_seconds=1))
    head = store.commit(KEY, head, logged_generation_of(2, ttl_seconds=1))
    time.sleep(0.6)
    assert whole_number(store) == 2
    time.sleep(0.6)
    assert logged_numbers(store) == [1, 2]
    time.sleep(1.1)
    assert store.read_head(KEY) is None
    assert head.log_id is not None
    with pytest.raises(LogLost):
        store.load_log(KEY, head.log_id, 1)


def test_writers_in_parallel_log_what_they_commit_and_nothing_else(store: Store) -> None:
    store.create(KEY, replace(generation_of(0), log=b""))
    failures: list[BaseException] = []

    def write() -> None:
        applied = 0
        try:
            while applied < 8:
                head = store.read_head(KEY)
                assert head is not None
                try:
                    commit(store, head.position + 1, head)
                except CommitConflict:
                    continue
                applied += 1
        except BaseException as error:
            failures.append(error)
            raise

    writers = [threading.Thread(target=write) for _ in range(4)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert not failures
    assert logged_numbers(store) == list(range(1, 33))


def test_a_head_without_a_log_is_written_as_ever_and_one_with_a_log_can_be_read_back() -> None:
    plain = next_head(None, generation_of(1), 1, num_kept=2)
    fields = json.loads(encode_head(plain))
    assert "log" not in fields
    assert len(fields["committed"]) == 10
    assert decode_head(encode_head(plain)) == plain
    logged = next_head(None, logged_generation_of(1), 1, num_kept=2)
    assert decode_head(encode_head(logged)) == logged
    for bad in ("../../etc/passwd", 7, "0" * 31):
        with pytest.raises(StateCorrupt):
            decode_head(json.dumps({**fields, "log": bad}).encode())


@pytest.fixture
def local(tmp_path: Path) -> Iterator[LocalStore]:
    store = LocalStore(tmp_path / "sessions", num_kept=1)
    yield store
    store.close()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "sessions" / "logs").iterdir())


def test_a_log_file_that_is_gone_or_cut_refuses_the_append_and_changes_nothing(
    local: LocalStore, tmp_path: Path
) -> None:
    head = commit(local, 1, None)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    for _ in range(2):
        with pytest.raises(LogLost):
            commit(local, 2, head)
        with pytest.raises(LogLost):
            log_of_head(local, head)
        assert whole_number(local) == 1
        path.unlink(missing_ok=True)
    path.write_bytes(whole + b"never committed")
    commit(local, 2, head)
    assert logged_numbers(local) == [1, 2]


def test_a_start_sweeps_the_logs_that_no_head_names(tmp_path: Path) -> None:
    url = f"local://{tmp_path / 'sessions'}"
    store = open_store(url)
    head = commit(store, 1, None)
    ended = commit(store, 1, None, SessionKey("tenant", "other"))
    assert ended.log_id is not None
    store.commit(SessionKey("tenant", "other"), ended, generation_of(2))
    assert [path.name for path in files(tmp_path)] == [head.log_id]
    store.close()
    (tmp_path / "sessions" / "logs" / ("1" * 32)).write_bytes(b"left behind")
    store = open_store(url)
    assert [path.name for path in files(tmp_path)] == [head.log_id]
    assert logged_numbers(store) == [1]
    assert store.delete(KEY) is True
    assert files(tmp_path) == []
    store.close()


@pytest.fixture
def redis_store(redis_server: RedisServer) -> Iterator[RedisStore]:
    store = RedisStore(f"{redis_server.url}?prefix=logs")
    yield store
    store.delete(KEY)
    store.close()


@pytest.fixture
def raw(redis_server: RedisServer) -> Iterator["redis.Redis"]:
    with redis.Redis(port=redis_server.port, protocol=2) as client:
        yield client


@pytest.mark.redis
@pytest.mark.parametrize("log", [log_of(1), b""])
def test_a_log_that_redis_has_lost_refuses_the_append_and_changes_nothing(
    redis_store: RedisStore, raw: "redis.Redis", log: bytes
) -> None:
    head = redis_store.commit(KEY, None, replace(generation_of(1), log=log))
    assert raw.delete(f"{PREFIX}log:{head.log_id}") == 1
    with pytest.raises(LogLost):
        commit(redis_store, 2, head)
    assert whole_number(redis_store) == 1
    assert commit_number(redis_store, 2, base=head).version == 2


@pytest.mark.redis
def test_a_log_that_redis_could_not_hold_is_refused_and_nothing_is_left_of_the_commit(
    redis_store: RedisStore, raw: "redis.Redis"
) -> None:
    head = commit(redis_store, 1, None)
    full = replace(head, committed=replace(head.committed, log_num_bytes=MAX_LOG_NUM_BYTES))
    raw.hset(f"{PREFIX}head", "head", encode_head(full))
    keys = set(raw.scan_iter("logs:*"))
    with pytest.raises(StoreFull, match="512 MiB"):
        commit(redis_store, 2, full)
    assert set(raw.scan_iter("logs:*")) == keys
    assert whole_number(redis_store) == 1
