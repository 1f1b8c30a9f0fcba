"""What the URL of a Redis store may say, and what its name may show. No server is asked."""

import traceback

import pytest

from engine.errors import StoreMisconfigured, StoreUnavailable
from engine.stores import open_store
from engine.stores.redis_url import RedisUrl
from engine.stores.redis_wait import Wait

PASSWORD = "s3" + "cret"


def test_a_url_is_read_as_it_is_written() -> None:
    url = RedisUrl.parse("rediss://us%40er:p%3Aw@Example.org:6390/3?prefix=my-atlas&allow_eviction=1")
    assert (url.username, url.password, url.prefix, url.allows_eviction) == ("us@er", "p:w", "my-atlas", True)
    assert (url.hosts, url.database, url.is_cluster, url.sentinel) == ((("example.org", 6390),), 3, False, None)
    assert url.wait is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("redis://h", "redis://h:6379/0"),
        ("redis:///2", "redis://localhost:6379/2"),
        ("rediss://us%40er:p%3Aw@example.org:6390/3?prefix=my-atlas", "rediss://example.org:6390/3"),
        ("redis://[::1]:7000/0", "redis://[::1]:7000/0"),
        ("redis://:pw@a,b:1,c/1?sentinel=main", "redis://a:26379,b:1,c:26379/1?sentinel=main"),
        ("redis://:pw@a:7000,[::2]/?cluster=1&replicas=1", "redis://a:7000,[::2]:6379/0?cluster=1"),
    ],
)
def test_a_name_shows_hosts_and_topology_and_no_secret(text: str, name: str) -> None:
    assert RedisUrl.parse(text).without_secrets == name
    store = open_store(text)
    assert store.name == name
    store.close()


@pytest.mark.parametrize(
    ("rest", "reason"),
    [
        ("h:port/0", "not a number"),
        ("h:0/0", "not a number"),
        ("h:65536/0", "not a number"),
        ("h/base", "not a number"),
        ("[::1/0", "not a number"),
        ("h/0?db=1", "'db'"),
        ("h/0?prefix=a{b", "prefix"),
        ("h/0?prefix=", "prefix"),
        ("h/0?allow_eviction=yes", "allow_eviction"),
        ("a,b/0", "several hosts"),
        ("a,/0?cluster=1", "comma"),
        ("a,b/0?cluster=1&sentinel=main", "one of them"),
        ("a,b/1?cluster=1", "database 0"),
        ("a/0?cluster=yes", "cluster"),
        ("a/0?sentinel=", "name of a master"),
        ("a/0?replicas=some", "replicas"),
        ("a/0?replicas=0", "nobody"),
        ("a/0?replicas=1&waitaof=1,0", "one of them"),
        ("a/0?waitaof=1", "LOCAL,REPLICAS"),
        ("a/0?waitaof=2,0", "LOCAL,REPLICAS"),
        ("a/0?waitaof=1,x", "waitaof"),
        ("a/0?waitaof=0,0", "nobody"),
        ("a/0?wait_ms=5", "needs replicas or waitaof"),
        ("a/0?replicas=1&wait_ms=0", "wait_ms"),
        ("a/0?replicas=1&wait_ms=10001", "wait_ms"),
        ("a/0?replicas=1&wait_ms=-1", "wait_ms"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_by_name_and_without_its_password(rest: str, reason: str) -> None:
    with pytest.raises(StoreMisconfigured, match=reason) as caught:
        open_store(f"redis://user:{PASSWORD}@{rest}")
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("options", "wait", "command", "durability"),
    [
        ("replicas=2", Wait(2, None, 1000), ("WAIT", 2, 1000), "replicated:2"),
        ("replicas=1&wait_ms=50", Wait(1, None, 50), ("WAIT", 1, 50), "replicated:1"),
        ("waitaof=1,0", Wait(0, 1, 1000), ("WAITAOF", 1, 0, 1000), "always"),
        ("waitaof=0,2", Wait(2, 0, 1000), ("WAITAOF", 0, 2, 1000), "replicated:2"),
        ("waitaof=1,3&wait_ms=10000", Wait(3, 1, 10_000), ("WAITAOF", 1, 3, 10_000), "replicated:3"),
    ],
)
def test_what_a_commit_waits_for_is_what_the_url_asks_for(
    options: str, wait: Wait, command: tuple[str | int, ...], durability: str
) -> None:
    assert RedisUrl.parse(f"redis://h/0?{options}").wait == wait
    assert (wait.command, wait.durability) == (command, durability)


def test_a_count_below_what_was_asked_for_is_refused_and_says_so() -> None:
    Wait(2, None, 1000).check(2)
    Wait(2, None, 1000).check(3)
    Wait(0, 1, 1000).check([1, 0])
    with pytest.raises(StoreUnavailable, match="1 of 2 replicas"):
        Wait(2, None, 1000).check(1)
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        Wait(1, 1, 1000).check([1, 0])
    with pytest.raises(StoreUnavailable, match="disk"):
        Wait(1, 1, 1000).check([0, 1])
