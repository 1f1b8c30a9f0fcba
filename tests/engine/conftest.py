"""Every store, each empty and of the test's own."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from engine import failpoints
from engine.stores import open_store
from engine.stores.base import Store
from tests.engine.store_cases import NUM_KEPT
from tests.redis_server import RedisServer
from tests.redis_topologies import Cluster, SentinelPair

_numbers = itertools.count()


def _redis(kind: str) -> ParameterSet:
    return pytest.param(kind, marks=pytest.mark.redis)


@pytest.fixture(
    params=["memory", "local", _redis("redis"), _redis("sentinel"), _redis("cluster"), _redis("valkey")],
)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Behind the sentinel every commit waits for the replica."""
    if request.param == "memory":
        return "memory://"
    if request.param == "local":
        return f"local://{tmp_path / 'sessions'}"
    prefix = f"prefix=test{next(_numbers)}"
    if request.param == "sentinel":
        pair: SentinelPair = request.getfixturevalue("sentinel_pair")
        return f"{pair.url}&replicas=1&{prefix}"
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("redis_cluster")
        return f"{cluster.url}&{prefix}"
    server: RedisServer = request.getfixturevalue("valkey_server" if request.param == "valkey" else "redis_server")
    return f"{server.url}?{prefix}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    store = open_store(store_url, NUM_KEPT)
    store.check()
    yield store
    store.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Callable[..., RedisServer]]:
    """Starts Redis servers of the test's own; `config` is the text of a configuration file."""
    servers: list[RedisServer] = []

    def start(*extra_args: str, program: str = "redis-server", config: str | None = None) -> RedisServer:
        path = None if config is None else tmp_path / f"redis{len(servers)}.conf"
        if path is not None and config is not None:
            path.write_text(config)
        server = RedisServer(tmp_path / f"redis{len(servers)}", *extra_args, program=program, config=path)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.kill()


@pytest.fixture
def disarmed() -> Iterator[None]:
    """No failpoint outlives its test."""
    yield
    failpoints.disarm()
