"""Servers that are misconfigured, full, hung, down or killed, each a test's own."""

import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress

import pytest
import redis

from engine.errors import (
    StoreFull,
    StoreMisconfigured,
    StoreUnavailable,
)
from engine.stores import open_store
from tests.engine.store_cases import (
    KEY,
    PART_NUM_BYTES,
    commit_number,
    generation_of,
    whole_number,
)
from tests.redis_server import RedisServer, redis_is_installed

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_a_policy_that_tears_sessions_is_refused_at_start_unless_that_is_wanted(
    policy: str, own: Callable[..., RedisServer]
) -> None:
    server = own("--maxmemory-policy", policy)
    store = open_store(server.url)
    with pytest.raises(StoreMisconfigured, match=policy):
        store.check()
    store.close()
    store = open_store(f"{server.url}?allow_eviction=1")
    store.check()
    assert commit_number(store, 1, base=None).version == 1
    store.close()


@pytest.mark.parametrize(
    ("arguments", "durability"),
    [
        (("--appendonly", "no"), "none"),
        (("--appendonly", "yes", "--appendfsync", "no"), "no"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "everysec"),
        (("--appendonly", "yes", "--appendfsync", "always"), "always"),
        (("--appendonly", "yes", "--user", "default", "on", "nopass", "~*", "+@all", "-config"), "unknown"),
    ],
)
def test_durability_is_what_redis_was_told(
    arguments: tuple[str, ...], durability: str, own: Callable[..., RedisServer]
) -> None:
    store = open_store(own(*arguments).url)
    assert store.durability == "unknown"
    store.check()
    assert store.durability == durability
    store.close()


def test_a_password_is_in_no_name_and_no_message(own: Callable[..., RedisServer]) -> None:
    server = own("--requirepass", "right-s3cret")
    urls = [
        server.url,
        server.url.replace("redis://", "redis://:wrong-s3cret@"),
        server.url.replace("redis://", "redis://someone:wrong-s3cret@"),
    ]
    for url in urls:
        store = open_store(url)
        with pytest.raises(StoreUnavailable, match="refused the credentials") as caught:
            store.check()
        assert "s3cret" not in "".join(traceback.format_exception(caught.value)) + store.name
        store.close()
    store = open_store(server.url.replace("redis://", "redis://:right-s3cret@"))
    store.check()
    assert commit_number(store, 1, base=None).version == 1
    assert "s3cret" not in store.name
    store.close()
    for rest in ("cret@host:port/0", "cret@host/base", "cret@host/0?x=1", "/cret@host"):
        url = f"redis://:s3{rest}"
        with pytest.raises(StoreMisconfigured) as refused:
            open_store(url)
        assert "s3" not in "".join(traceback.format_exception(refused.value))


def test_a_server_that_is_down_is_unavailable_soon(own: Callable[..., RedisServer]) -> None:
    server = own()
    server.kill()
    store = open_store(server.url)
    begin = time.monotonic()
    with pytest.raises(StoreUnavailable, match="reached"):
        store.check()
    assert time.monotonic() - begin < 5
    store.close()


def test_a_full_redis_refuses_the_commit_and_keeps_nothing_of_it(own: Callable[..., RedisServer]) -> None:
    server = own("--maxmemory", "8mb")
    store = open_store(server.url)
    store.check()
    head = commit_number(store, 1, base=None)
    with redis.Redis(port=server.port, protocol=2) as raw:
        new = generation_of(2)
        filler = 0
        with suppress(redis.exceptions.OutOfMemoryError):
            while True:
                raw.set(f"filler{filler}", bytes(PART_NUM_BYTES))
                filler += 1
        with pytest.raises(StoreFull):
            store.commit(KEY, head, new)
        # Room for some of the parts only: the rest must not stay behind.
        raw.delete("filler0", "filler1")
        with pytest.raises(StoreFull):
            store.commit(KEY, head, new)
        assert not [key for key in raw.scan_iter("*") if new.generation.encode() in key]
        assert store.read_head(KEY) == head
        assert whole_number(store) == 1
        raw.delete(*(f"filler{index}" for index in range(filler)))
    assert store.commit(KEY, head, new).version == 2
    store.close()


def test_a_redis_killed_in_mid_save_keeps_the_last_committed_generation_or_the_new_one(
    own: Callable[..., RedisServer],
) -> None:
    server = own("--appendonly", "yes", "--appendfsync", "always")
    store = open_store(server.url)
    store.check()
    acknowledged = 0
    for round_number in range(6):
        head = store.read_head(KEY)
        assert head is None or (head.version >= acknowledged and whole_number(store) == head.version)
        killer = threading.Timer(0.01 + 0.02 * round_number, server.kill)
        killer.start()
        with suppress(StoreUnavailable):
            while True:
                head = commit_number(store, head.version + 1 if head else 1, base=head)
                acknowledged = head.version
        killer.join()
        server.start()
    head = store.read_head(KEY)
    assert head is not None
    assert head.version in (acknowledged, acknowledged + 1)
    assert whole_number(store) == head.version
    store.close()
