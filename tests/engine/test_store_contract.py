"""The contract of `engine.stores.base`, the same for memory, local and a real Redis."""

import random
import threading
import time
from dataclasses import replace

import pytest

from engine.errors import (
    CommitConflict,
    InvalidRequest,
    SessionExists,
    SessionNotFound,
)
from engine.stores.base import Head, IngestMark, SessionKey, Store, new_generation_id
from tests.engine.store_cases import KEY, commit_number, generation_of, part_of, whole_number


def test_an_absent_session_has_no_head_and_cannot_be_loaded_or_deleted(store: Store) -> None:
    assert store.read_head(KEY) is None
    assert store.delete(KEY) is False
    assert store.list_sessions(KEY.tenant, 10) == []
    with pytest.raises(SessionNotFound):
        store.load(KEY)
    with pytest.raises(SessionNotFound):
        store.load_extra(KEY)


def test_what_is_committed_is_loaded_byte_for_byte(store: Store) -> None:
    head = commit_number(store, 7, base=None)
    assert head.version == 1
    assert store.read_head(KEY) == head
    assert whole_number(store) == 7
    assert store.load_extra(KEY) == b"extra 7"


def test_a_created_session_is_version_zero_and_may_hold_nothing(store: Store) -> None:
    new = replace(generation_of(0), parts=(), digest="", extra=b"")
    head = store.create(KEY, new)
    assert (head.version, head.num_bytes) == (0, 0)
    assert b"".join(store.load(KEY)[1]) == b""
    assert store.load_extra(KEY) == b""
    assert commit_number(store, 1, base=head).version == 1


def test_a_session_is_created_once_but_a_retry_of_the_creation_is_no_conflict(store: Store) -> None:
    new = generation_of(0)
    head = store.create(KEY, new)
    assert store.create(KEY, new) == head
    with pytest.raises(SessionExists):
        store.create(KEY, generation_of(0))


def test_every_commit_raises_the_version_by_one(store: Store) -> None:
    head = store.create(KEY, generation_of(0))
    for number in range(1, 6):
        head = commit_number(store, number, base=head)
        assert head.version == number
        assert whole_number(store) == number


def test_a_writer_whose_base_is_old_changes_nothing(store: Store) -> None:
    first = commit_number(store, 1, base=None)
    second = commit_number(store, 2, base=first)
    for base in (None, first):
        with pytest.raises(CommitConflict):
            commit_number(store, 99, base=base)
    assert store.read_head(KEY) == second
    assert whole_number(store) == 2


def test_a_base_from_before_a_deletion_is_refused_by_the_session_made_anew(store: Store) -> None:
    old = commit_number(store, 1, base=None)
    assert store.delete(KEY) is True
    with pytest.raises(CommitConflict):
        commit_number(store, 99, base=old)
    assert commit_number(store, 2, base=None).version == old.version
    with pytest.raises(CommitConflict):
        commit_number(store, 99, base=old)
    assert whole_number(store) == 2


def test_a_retried_commit_is_applied_once_even_when_another_followed(store: Store) -> None:
    first = commit_number(store, 1, base=None)
    new = generation_of(2)
    second = store.commit(KEY, first, new)
    assert store.commit(KEY, first, new) == second
    commit_number(store, 3, base=second)
    assert store.commit(KEY, first, new) == second
    assert whole_number(store) == 3


def test_a_retried_commit_whose_version_has_a_name_by_now_is_told_with_it(store: Store) -> None:
    new = generation_of(1)
    store.commit(KEY, None, new)
    named = store.name_version(KEY, 1, "first")
    assert store.commit(KEY, None, new) == named


def test_a_head_remembers_the_last_sixteen_generations(store: Store) -> None:
    first = generation_of(1)
    head = made = store.commit(KEY, None, first)
    for number in range(2, 17):
        head = commit_number(store, number, base=head)
    assert store.commit(KEY, None, first) == made
    commit_number(store, 17, base=head)
    with pytest.raises(CommitConflict):
        store.commit(KEY, None, first)


def test_a_head_tells_what_was_committed(store: Store) -> None:
    new = replace(
        generation_of(9),
        metadata={"título": "señal \U0001f9ed", "empty": ""},
        open_ingest=IngestMark("dócument/1", 2**40),
        created=1234.5678,
        updated=2345.6789,
        ttl_seconds=3600,
    )
    head = store.commit(KEY, None, new)
    assert head == store.read_head(KEY) == store.load(KEY)[0]
    assert (head.metadata, head.open_ingest, head.ttl_seconds) == (new.metadata, new.open_ingest, 3600)
    assert (head.created, head.updated, head.position, head.digest) == (1234.5678, 2345.6789, 9, new.digest)
    assert (head.num_parts, head.num_bytes) == (3, sum(len(part_of(9, index)) for index in range(3)))


def test_what_a_load_returned_is_the_callers_own(store: Store) -> None:
    commit_number(store, 1, base=None)
    for part in store.load(KEY)[1]:
        if not memoryview(part).readonly:
            memoryview(part)[:] = bytes(memoryview(part).nbytes)
    assert whole_number(store) == 1


def test_sessions_are_listed_by_id_in_pages_and_only_their_tenants(store: Store) -> None:
    ids = ["a", "a.b", "a:b", "B", "z-9", "0"]
    for session_id in ids:
        commit_number(store, 1, base=None, key=SessionKey("one", session_id))
    commit_number(store, 1, base=None, key=SessionKey("two", "other"))
    expected = sorted(ids)
    found: list[str] = []
    while page := store.list_sessions("one", 2, found[-1] if found else None):
        assert len(page) <= 2
        found += [session_id for session_id, _ in page]
    assert found == expected
    assert store.delete(SessionKey("one", "a.b")) is True
    assert [session_id for session_id, _ in store.list_sessions("one", 100)] == [i for i in expected if i != "a.b"]
    assert [(session_id, head.version) for session_id, head in store.list_sessions("two", 100)] == [("other", 1)]


def test_a_session_that_is_made_while_others_list_is_listed(store: Store) -> None:
    """Also one that is made anew, where a lister or its deletion has just found none of this id."""
    is_over = threading.Event()

    def keep_listing() -> None:
        while not is_over.is_set():
            store.list_sessions(KEY.tenant, 10)

    for round_number in range(30):
        key = SessionKey(KEY.tenant, f"made-{round_number}")
        is_over.clear()
        listers = [threading.Thread(target=keep_listing) for _ in range(2)]
        for lister in listers:
            lister.start()
        for _ in range(3):
            store.delete(key)
            store.create(key, generation_of(round_number))
        is_over.set()
        for lister in listers:
            lister.join()
        assert [session_id for session_id, _ in store.list_sessions(KEY.tenant, 10)] == [key.session_id]
        store.delete(key)


def test_a_session_without_a_byte_is_created_and_deleted(store: Store) -> None:
    store.create(KEY, replace(generation_of(0), parts=(), extra=b""))
    assert store.delete(KEY) is True
    assert store.read_head(KEY) is None
    assert store.usage(KEY.tenant).num_bytes == 0


def test_the_same_id_of_two_tenants_is_two_sessions(store: Store) -> None:
    mine, theirs = SessionKey("one", "same"), SessionKey("two", "same")
    commit_number(store, 1, base=None, key=mine)
    commit_number(store, 2, base=None, key=theirs)
    assert store.delete(theirs) is True
    assert whole_number(store, mine) == 1


@pytest.mark.parametrize("session_id", ["", ".", "..", "a/b", "a{b", "a b", "a\n", "a\r\nb", "ä", "..%2f", "x" * 129])
def test_no_store_ever_meets_an_odd_session_id(session_id: str) -> None:
    with pytest.raises(InvalidRequest, match="session id") as caught:
        SessionKey("tenant", session_id)
    assert caught.value.param == "session_id"


def test_a_lease_has_one_holder_until_it_runs_out_or_is_released(store: Store) -> None:
    assert store.acquire_lease(KEY, "first", 30)
    assert store.acquire_lease(KEY, "first", 30)
    assert not store.acquire_lease(KEY, "second", 30)
    store.release_lease(KEY, "second")
    assert not store.acquire_lease(KEY, "second", 30)
    store.release_lease(KEY, "first")
    assert store.acquire_lease(KEY, "second", 0.05)
    time.sleep(0.1)
    assert store.acquire_lease(KEY, "first", 30)


def test_a_session_ends_when_it_was_not_used_for_its_time_to_live(store: Store) -> None:
    lasting = SessionKey("tenant", "lasting")
    commit_number(store, 5, base=None, key=lasting)
    head = store.commit(KEY, None, generation_of(1, ttl_seconds=1))
    store.commit(KEY, head, generation_of(2, ttl_seconds=1))
    time.sleep(0.6)
    assert whole_number(store) == 2
    time.sleep(0.6)
    assert whole_number(store) == 2
    assert whole_number(store, version=1) == 1
    time.sleep(1.1)
    assert store.read_head(KEY) is None
    assert [session_id for session_id, _ in store.list_sessions("tenant", 10)] == ["lasting"]
    with pytest.raises(SessionNotFound):
        store.load(KEY)
    assert whole_number(store, lasting) == 5
    assert commit_number(store, 3, base=None).version == 1


def test_a_touch_is_a_use_and_keeps_nothing_alive_that_has_no_time_to_live_or_is_gone(store: Store) -> None:
    lasting = SessionKey("tenant", "lasting")
    other = store.commit(lasting, None, generation_of(5))
    first = store.commit(KEY, None, generation_of(1, ttl_seconds=1))
    head = store.commit(KEY, first, generation_of(2, ttl_seconds=1))
    for _ in range(2):
        time.sleep(0.6)
        store.touch(KEY, head)
        store.touch(lasting, other)
    assert (whole_number(store), whole_number(store, version=1)) == (2, 1)
    time.sleep(1.1)
    store.touch(KEY, head)
    assert store.read_head(KEY) is None
    assert whole_number(store, lasting) == 5


def test_a_quarantined_generation_can_still_be_loaded_and_left_behind(store: Store) -> None:
    head = commit_number(store, 1, base=None)
    store.quarantine(KEY, head.committed)
    store.quarantine(KEY, head.committed)
    assert whole_number(store) == 1
    commit_number(store, 2, base=head)
    assert whole_number(store) == 2


def test_a_generation_id_is_fresh_and_random() -> None:
    assert len({new_generation_id() for _ in range(1000)}) == 1000


def test_writers_in_parallel_lose_nothing_and_readers_see_only_whole_generations(store: Store) -> None:
    num_writers, commits_each = 4, 8
    store.create(KEY, generation_of(0))
    acknowledged: list[int] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def write() -> None:
        applied = 0
        while applied < commits_each:
            head = store.read_head(KEY)
            assert head is not None
            try:
                acknowledged.append(commit_number(store, head.position + 1, base=head).version)
            except CommitConflict:
                continue
            applied += 1

    def read() -> None:
        latest = 0
        while not done.is_set():
            number = whole_number(store)
            assert number >= latest
            latest = number

    def guarded(function: object) -> None:
        try:
            assert callable(function)
            function()
        except BaseException as error:
            failures.append(error)
            raise

    writers = [threading.Thread(target=guarded, args=(write,)) for _ in range(num_writers)]
    readers = [threading.Thread(target=guarded, args=(read,)) for _ in range(2)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    for thread in readers:
        thread.join()
    assert not failures
    assert sorted(acknowledged) == list(range(1, num_writers * commits_each + 1))
    assert whole_number(store) == num_writers * commits_each


@pytest.mark.parametrize("seed", range(3))
def test_a_random_history_equals_that_of_a_plain_dictionary(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    keys = [SessionKey("tenant", f"s{index}") for index in range(3)]
    expected: dict[SessionKey, tuple[int, int]] = {}
    seen: dict[SessionKey, list[Head | None]] = {key: [None] for key in keys}
    for number in range(60):
        key = rng.choice(keys)
        action = rng.choice(["commit", "commit", "commit", "stale", "create", "delete", "load"])
        current = store.read_head(key)
        assert (current and (current.version, current.position)) == expected.get(key)
        if action == "commit":
            head = commit_number(store, number, base=current, key=key)
            seen[key].append(head)
            expected[key] = (current.version + 1 if current else 1, number)
        elif action == "stale" and (base := rng.choice(seen[key])) != current:
            with pytest.raises(CommitConflict):
                commit_number(store, number, base=base, key=key)
        elif action == "create" and key not in expected:
            seen[key].append(store.create(key, generation_of(number)))
            expected[key] = (0, number)
        elif action == "delete":
            assert store.delete(key) is (key in expected)
            expected.pop(key, None)
        elif action == "load" and key in expected:
            assert whole_number(store, key) == expected[key][1]
    assert [session_id for session_id, _ in store.list_sessions("tenant", 9)] == sorted(k.session_id for k in expected)
