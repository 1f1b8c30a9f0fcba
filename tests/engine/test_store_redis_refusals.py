"""What Redis says when it will not or cannot serve, each in words of its own, and what the check at start looks at.

Every server is real. After each the session is as it was.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.errors import AtlasError, StoreMisconfigured, StoreUnavailable
from engine.stores import open_store
from engine.stores.breaker import MAX_NUM_OUTAGES, OPEN_SECONDS
from tests.engine.store_cases import KEY, commit_number, whole_number
from tests.redis_server import RedisServer, redis_is_installed
from tests.redis_topologies import SentinelPair, ask, client_of, wait_for_replica

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]
Own = Callable[..., RedisServer]
Commands = Sequence[tuple[str | int, ...]]


def refused(call: Callable[[], object]) -> AtlasError:
    with pytest.raises(StoreUnavailable) as caught:
        call()
    return caught.value


@pytest.mark.parametrize(
    ("harm", "cure", "reason", "can_be_read"),
    [
        ([("REPLICAOF", "127.0.0.1", 1)], [("REPLICAOF", "NO", "ONE")], "read-only", True),
        (
            [("CONFIG", "SET", "min-replicas-to-write", 1)],
            [("CONFIG", "SET", "min-replicas-to-write", 0)],
            "refused a write: it has fewer replicas",
            True,
        ),
        (
            [("CONFIG", "SET", "replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", 1)],
            [("REPLICAOF", "NO", "ONE")],
            "lost its master",
            False,
        ),
    ],
)
def test_a_server_that_takes_no_writes_is_unavailable_and_says_why(
    harm: Commands, cure: Commands, reason: str, can_be_read: bool, own: Own
) -> None:
    server = own()
    store = open_store(server.url)
    store.check()
    head = commit_number(store, 1, base=None)
    for command in harm:
        ask(server, *command)
    if can_be_read:
        assert reason in refused(lambda: commit_number(store, 2, base=head)).message
        assert whole_number(store) == 1
    else:
        assert reason in refused(lambda: store.read_head(KEY)).message
    for command in cure:
        ask(server, *command)
    assert commit_number(store, 2, base=head).version == 2
    store.check()
    store.close()


def test_a_server_that_loads_its_data_says_so_and_has_the_session_afterwards(own: Own) -> None:
    server = own("--appendonly", "yes", "--key-load-delay", "50")
    store = open_store(server.url)
    commit_number(store, 1, base=None)
    with client_of(server) as raw, raw.pipeline(transaction=False) as fillers:
        # Redis answers once in 1024 commands that it reads from its file.
        for number in range(15_000):
            fillers.set(f"filler{number}", "x")
        fillers.execute()
    server.stop()
    starting = threading.Thread(target=server.start)
    starting.start()
    reasons = set()
    while starting.is_alive():
        try:
            store.check()
        except StoreUnavailable as error:
            reasons.add(error.message)
        time.sleep(0.05)
    starting.join()
    assert reasons <= {"Redis cannot be reached", "Redis is loading its data"}
    assert "Redis is loading its data" in reasons
    assert whole_number(store) == 1
    store.close()


def test_a_server_that_hangs_is_not_waited_for_again_until_it_answers_a_probe(own: Own) -> None:
    server = own()
    store = open_store(server.url)
    commit_number(store, 1, base=None)
    server.pause()
    with ThreadPoolExecutor(MAX_NUM_OUTAGES) as threads:
        reasons = list(threads.map(lambda _: refused(lambda: store.read_head(KEY)).message, range(MAX_NUM_OUTAGES)))
    assert reasons == ["Redis did not answer in time"] * MAX_NUM_OUTAGES
    begin = time.monotonic()
    error = refused(lambda: store.read_head(KEY))
    assert time.monotonic() - begin < 0.1
    assert isinstance(error, StoreUnavailable)
    assert 0 < error.retry_after <= OPEN_SECONDS
    server.resume()
    assert "for a while" in refused(lambda: store.read_head(KEY)).message
    time.sleep(error.retry_after)
    assert whole_number(store) == 1
    store.close()


def test_a_check_that_is_answered_lets_everybody_through_at_once(own: Own) -> None:
    server = own()
    store = open_store(server.url)
    commit_number(store, 1, base=None)
    server.pause()
    with ThreadPoolExecutor(MAX_NUM_OUTAGES) as threads:
        list(threads.map(lambda _: refused(lambda: store.read_head(KEY)), range(MAX_NUM_OUTAGES)))
    assert "for a while" in refused(lambda: store.read_head(KEY)).message
    server.resume()
    store.check()
    assert whole_number(store) == 1
    store.close()


def test_a_server_that_is_gone_refuses_at_once_and_opens_no_breaker(own: Own) -> None:
    server = own("--appendonly", "yes", "--appendfsync", "always")
    store = open_store(server.url)
    commit_number(store, 1, base=None)
    server.kill()
    for _ in range(3 * MAX_NUM_OUTAGES):
        assert refused(lambda: store.read_head(KEY)).message == "Redis cannot be reached"
    server.start()
    assert whole_number(store) == 1
    store.close()


def test_refusals_never_open_the_breaker(own: Own) -> None:
    server = own()
    store = open_store(server.url)
    head = commit_number(store, 1, base=None)
    ask(server, "CONFIG", "SET", "min-replicas-to-write", 1)
    for _ in range(3 * MAX_NUM_OUTAGES):
        assert "fewer replicas" in refused(lambda: store.acquire_lease(KEY, "me", 1)).message
    assert store.read_head(KEY) == head
    store.close()


def test_a_policy_that_is_changed_under_us_is_noticed_by_the_next_check_and_so_is_the_durability(own: Own) -> None:
    server = own("--appendonly", "yes", "--appendfsync", "always")
    store = open_store(server.url)
    store.check()
    assert store.durability == "always"
    ask(server, "CONFIG", "SET", "appendfsync", "everysec")
    store.check()
    assert store.durability == "everysec"
    ask(server, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    with pytest.raises(StoreMisconfigured, match="allkeys-lru"):
        store.check()
    store.close()


def test_a_server_that_cannot_take_a_part_or_is_no_server_of_data_is_refused_at_start(
    own: Own, sentinel_pair: SentinelPair
) -> None:
    for url, reason in (
        (own("--proto-max-bulk-len", "1mb").url, "proto-max-bulk-len"),
        (sentinel_pair.sentinel.url, "sentinel=NAME"),
    ):
        store = open_store(url)
        with pytest.raises(StoreMisconfigured, match=reason):
            store.check()
        store.close()


def test_a_replica_is_not_ready(sentinel_pair: SentinelPair) -> None:
    store = open_store(sentinel_pair.replica.url)
    assert "read-only replica" in refused(store.check).message
    store.close()


def test_what_is_unwise_is_logged_once_and_refuses_nothing(own: Own, caplog: pytest.LogCaptureFixture) -> None:
    server = own("--maxmemory", "0")
    replica = own("--replicaof", "127.0.0.1", str(server.port))
    wait_for_replica(server, replica)
    caplog.set_level(logging.WARNING)
    store = open_store(f"{server.url}?replicas=2")
    for _ in range(3):
        store.check()
    assert len(caplog.records) == 3
    for warning in (
        "no maxmemory",
        "client-output-buffer-limit for replicas is 268435456",
        "2 replicas and Redis has 1",
    ):
        assert warning in caplog.text
    store.close()
    caplog.clear()
    ask(server, "CONFIG", "SET", "maxmemory", "1gb", "client-output-buffer-limit", "replica 2gb 512mb 120")
    store = open_store(f"{server.url}?replicas=1")
    store.check()
    assert caplog.records == []
    store.close()
