"""Sessions on a Cluster: slots that move, primaries that die. Every node is real; those that are harmed are a test's
own. The store contract runs on a Cluster too (test_store_contract.py)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from engine.errors import StoreMisconfigured, StoreUnavailable
from engine.stores import open_store
from engine.stores.base import SessionKey
from engine.stores.breaker import MAX_NUM_OUTAGES
from engine.stores.redis_keys import RedisKeys
from tests.engine.store_cases import KEY, commit_number, generation_of, whole_number
from tests.redis_server import RedisServer, free_port, redis_is_installed
from tests.redis_topologies import Cluster, ask, info, wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]
KEYS = RedisKeys("atlas")


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, node_timeout_milliseconds=1000) as cluster:
        yield cluster


def is_in_state(server: RedisServer, state: str) -> bool:
    return f"cluster_state:{state}" in str(ask(server, "CLUSTER", "INFO"))


def is_answered(call: Callable[[], object]) -> bool:
    try:
        call()
    except StoreUnavailable:
        return False
    return True


def test_sessions_live_on_all_nodes_and_one_listing_finds_them(redis_cluster: Cluster) -> None:
    store = open_store(f"{redis_cluster.url}&prefix=spread")
    keys = [SessionKey("tenant", f"s{number:02}") for number in range(30)]
    for number, key in enumerate(keys):
        commit_number(store, number, base=None, key=key)
    slots = [redis_cluster.slot_of(RedisKeys("spread").head(key)) for key in keys]
    assert {redis_cluster.owner_of(slot).port for slot in slots} == {s.port for s in redis_cluster.servers}
    listed = store.list_sessions("tenant", 100)
    assert [(session_id, head.position) for session_id, head in listed] == [
        (key.session_id, number) for number, key in enumerate(keys)
    ]
    store.close()


def test_commits_loads_and_deletions_survive_a_slot_that_moves(cluster: Cluster) -> None:
    """With a wait and without, before the move, in the middle of it, and after."""
    slot = cluster.slot_of(KEYS.head(KEY))
    source = cluster.owner_of(slot)
    target = next(server for server in cluster.servers if server is not source)
    cluster.add_replica(source)
    plain, waiting = open_store(cluster.url), open_store(f"{cluster.url}&replicas=1")
    head = commit_number(waiting, 1, base=None)
    head = commit_number(plain, 2, base=head)

    def midway() -> None:
        for store in (plain, waiting):
            with pytest.raises(StoreUnavailable, match="moving"):
                store.commit(KEY, head, generation_of(99))

    cluster.move_slot(slot, target, midway)
    assert cluster.owner_of(slot) is target
    assert whole_number(plain) == 2
    head = commit_number(plain, 3, base=head)
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        commit_number(waiting, 4, base=head)
    assert whole_number(waiting) == 4
    cluster.move_slot(slot, source, lambda: None)
    new = generation_of(5)
    assert waiting.commit(KEY, waiting.read_head(KEY), new).version == 5
    assert whole_number(plain) == 5
    assert waiting.delete(KEY) is True
    assert plain.read_head(KEY) is None
    plain.close()
    waiting.close()


def test_an_acknowledged_commit_is_on_the_replica_that_takes_over(cluster: Cluster) -> None:
    primary = cluster.owner_of(cluster.slot_of(KEYS.head(KEY)))
    replica = cluster.add_replica(primary)
    store, idle = open_store(f"{cluster.url}&replicas=1"), open_store(cluster.url)
    idle.check()
    store.check()
    assert store.durability == "replicated:1"
    head = None
    for number in range(1, 6):
        head = commit_number(store, number, base=head)
    primary.kill()
    with pytest.raises(StoreUnavailable):
        store.read_head(KEY)
    wait_until(lambda: info(replica, "replication")["role"] == "master", "the failover")
    reader = open_store(cluster.url)
    living = [server for server in cluster.servers if server.is_running]
    wait_until(lambda: all(is_in_state(server, "ok") for server in living), "a whole cluster")
    assert whole_number(reader) == 5
    assert commit_number(reader, 6, base=head).version == 6

    wait_until(lambda: is_answered(lambda: whole_number(store)), "the store's own client to find the new primary")
    assert whole_number(store) == 6
    wait_until(lambda: is_answered(idle.check), "a check to find it without any other request")
    for one in (store, idle, reader):
        one.close()


def test_a_cluster_with_a_dead_primary_and_no_replica_is_down_and_says_so(cluster: Cluster) -> None:
    store = open_store(cluster.url)
    store.check()
    commit_number(store, 1, base=None)
    dead = next(s for s in cluster.servers if s is not cluster.owner_of(cluster.slot_of(KEYS.head(KEY))))
    dead.kill()
    others = [server for server in cluster.servers if server.is_running]
    wait_until(lambda: is_in_state(others[0], "fail"), "the cluster to notice")
    with pytest.raises(StoreUnavailable):
        store.check()
    wait_until(lambda: is_in_state(others[1], "fail"), "the other to notice")
    with pytest.raises(StoreUnavailable, match="Cluster is down"):
        store.read_head(KEY)
    dead.start()
    wait_until(lambda: all(is_in_state(server, "ok") for server in cluster.servers), "a whole cluster")
    assert whole_number(store) == 1
    store.check()
    store.close()


def test_a_node_that_hangs_opens_no_breaker_for_the_sessions_of_others(cluster: Cluster) -> None:
    for server in cluster.servers:
        ask(server, "CONFIG", "SET", "cluster-require-full-coverage", "no")
    store = open_store(cluster.url)
    keys = [SessionKey("tenant", f"s{number}") for number in range(20)]
    for number, key in enumerate(keys):
        commit_number(store, number, base=None, key=key)
    hanging = cluster.owner_of(cluster.slot_of(KEYS.head(keys[0])))
    hangs = [cluster.owner_of(cluster.slot_of(KEYS.head(key))) is hanging for key in keys]
    assert not all(hangs)
    hanging.pause()
    with ThreadPoolExecutor(MAX_NUM_OUTAGES) as threads:
        answers = threads.map(lambda _: is_answered(lambda: store.read_head(keys[0])), range(MAX_NUM_OUTAGES))
    assert not any(answers)
    with pytest.raises(StoreUnavailable, match="for a while"):
        store.read_head(keys[0])
    for number, key in enumerate(keys):
        if not hangs[number]:
            assert whole_number(store, key) == number
    store.close()


def test_a_url_that_means_another_topology_is_refused_by_name(
    redis_cluster: Cluster, redis_server: RedisServer
) -> None:
    for url, error, reason in (
        (f"redis://127.0.0.1:{redis_cluster.servers[0].port}/0", StoreMisconfigured, "cluster=1"),
        (f"{redis_server.url}?cluster=1", StoreUnavailable, "or is none"),
        (f"redis://127.0.0.1:{free_port()}/0?cluster=1", StoreUnavailable, "cannot be reached"),
    ):
        store = open_store(url)
        with pytest.raises(error, match=reason):
            store.check()
        store.close()
