"""Sessions behind sentinels, and what a commit that waits for replicas is worth when the master goes away.

Every server is real; those that are harmed are a test's own.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.errors import StoreUnavailable
from engine.stores import open_store
from engine.stores.base import Store
from tests.engine.store_cases import KEY, commit_number, generation_of, whole_number
from tests.redis_server import RedisServer, free_port, redis_is_installed
from tests.redis_topologies import SentinelPair, info, wait_for_replica, wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[SentinelPair]:
    with SentinelPair(tmp_path, down_after_milliseconds=500) as pair:
        yield pair


def committed_soon(store: Store, number: int) -> int:
    """The version of a commit that is tried until the new master takes it."""
    new = generation_of(number)
    versions: list[int] = []

    def commits() -> bool:
        try:
            versions.append(store.commit(KEY, store.read_head(KEY), new).version)
        except StoreUnavailable:
            return False
        return True

    wait_until(commits, "a commit after the failover")
    return versions[-1]


def test_an_acknowledged_commit_is_on_the_new_master_and_the_next_one_continues_it(pair: SentinelPair) -> None:
    store = open_store(f"{pair.url}&replicas=1")
    store.check()
    assert store.durability == "replicated:1"
    head = None
    for number in range(1, 6):
        head = commit_number(store, number, base=head)
    pair.master.kill()
    with pytest.raises(StoreUnavailable):
        commit_number(store, 99, base=head)
    pair.wait_for_failover()
    assert whole_number(store) == 5
    assert store.read_head(KEY) == head
    new = generation_of(6)
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        store.commit(KEY, head, new)
    third = RedisServer(pair.directory / "third", "--replicaof", "127.0.0.1", str(pair.replica.port))
    with third:
        wait_for_replica(pair.replica, third)
        assert store.commit(KEY, head, new).version == 6
    assert whole_number(store) == 6
    store.close()


def test_without_waiting_a_failover_is_survived_as_well(pair: SentinelPair) -> None:
    store = open_store(pair.url)
    store.check()
    assert store.durability == "none"
    commit_number(store, 1, base=None)
    wait_until(
        lambda: (
            info(pair.replica, "replication")["slave_repl_offset"]
            == info(pair.master, "replication")["master_repl_offset"]
        ),
        "the replica to catch up",
    )
    pair.master.kill()
    assert committed_soon(store, 2) == 2
    assert whole_number(store) == 2
    store.check()
    store.close()


def test_a_master_that_was_demoted_is_left_for_the_new_one(pair: SentinelPair) -> None:
    store = open_store(pair.url)
    commit_number(store, 1, base=None)
    pair.change_masters()
    assert committed_soon(store, 2) == 2
    assert info(pair.replica, "replication")["role"] == "master"
    store.check()
    store.close()


def test_a_master_that_no_sentinel_knows_is_unavailable_by_name(sentinel_pair: SentinelPair) -> None:
    store = open_store(sentinel_pair.url.replace(sentinel_pair.name, "another"))
    with pytest.raises(StoreUnavailable, match="no Redis sentinel knows a master of that name"):
        store.check()
    store.close()
    store = open_store(f"redis://127.0.0.1:{free_port()}/0?sentinel=main")
    with pytest.raises(StoreUnavailable, match="sentinel"):
        store.read_head(KEY)
    store.close()
