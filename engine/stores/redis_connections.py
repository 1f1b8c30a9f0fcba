"""The library's clients for one server, for the master that sentinels name, and for a Cluster.

Time-outs, retries and pools are ours; who is master, where a slot lives and what a redirection means is the library's.
"""

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import PythonRespSerializer
from redis.exceptions import AskError, MovedError, RedisClusterException, RedisError, SlotNotCoveredError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from engine.stores.redis_url import RedisUrl

CONTROL_SECONDS = 1.0
_POOL_SECONDS = 5.0
_PACKED_NUM_BYTES = 6000


class Connections(Protocol):
    """A pool to each server that the URL leads to. Nothing connects before the first command."""

    def client(self) -> Any:
        """Takes any command and finds its server. Raises what the library does."""

    def primaries(self) -> Sequence["redis.Redis"]:
        """A client for each server that takes writes."""

    def owner(self, key: bytes) -> "redis.Redis":
        """The client of the server that has `key`."""

    def redirected(self, error: AskError) -> "redis.Redis":
        """The client of the server that another one pointed to. MOVED is a kind of ASK."""

    def look_again(self) -> None:
        """A server did not answer: another may have taken its place."""

    def place(self, key: bytes) -> str:
        """Which server has `key`, as far as that is known without asking."""

    def close(self) -> None: ...


def open_connections(url: RedisUrl, seconds: float, num_connections: int) -> Connections:
    """seconds: how long a reply may take.   num_connections: at most so many to one server."""
    return ClusterConnections(url, seconds) if url.is_cluster else MasterConnections(url, seconds, num_connections)


class _BlockingSentinelPool(SentinelConnectionPool, redis.BlockingConnectionPool):
    """Waits for a free connection, to the master that the sentinels name."""


class MasterConnections:
    """One server takes all writes: the one in the URL, or the one that the URL's sentinels name."""

    def __init__(self, url: RedisUrl, seconds: float, num_connections: int) -> None:
        settings = {
            **_settings(url, seconds),
            "db": url.database,
            "max_connections": num_connections,
            "timeout": _POOL_SECONDS,
            "retry": _retry(),
            # NOTE: the packer of hiredis copies every part twice; this one sends a memoryview as it lies.
            "command_packer": PythonRespSerializer(_PACKED_NUM_BYTES, _encode),
        }
        self._sentinel: Sentinel | None = None
        if url.sentinel is None:
            host, port = url.hosts[0]
            connection_class = redis.SSLConnection if url.scheme == "rediss" else redis.Connection
            pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
                host=host, port=port, connection_class=connection_class, **settings
            )
            self._client = redis.Redis(connection_pool=pool)
        else:
            if url.scheme == "rediss":
                settings["ssl"] = True
            self._sentinel = _sentinel(url)
            self._client = self._sentinel.master_for(  # type: ignore[no-untyped-call]
                url.sentinel, connection_pool_class=_BlockingSentinelPool, **settings
            )

    def client(self) -> Any:
        return self._client

    def primaries(self) -> Sequence["redis.Redis"]:
        return [self._client]

    def owner(self, key: bytes) -> "redis.Redis":
        return self._client

    def redirected(self, error: AskError) -> "redis.Redis":
        raise error

    def look_again(self) -> None:
        """The next connection asks the sentinels anyway."""

    def place(self, key: bytes) -> str:
        return ""

    def close(self) -> None:
        self._client.close()
        self._client.connection_pool.disconnect()
        if self._sentinel is not None:
            self._sentinel.close()


class ClusterConnections:
    """The nodes of a Cluster; the URL's hosts are where to ask for the others."""

    def __init__(self, url: RedisUrl, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        self._lock = threading.Lock()
        self._cluster: RedisCluster | None = None

    def client(self) -> RedisCluster:
        with self._lock:
            if self._cluster is None:
                # NOTE: this asks the nodes for their slots, and raises when none answers.
                self._cluster = RedisCluster(
                    startup_nodes=[ClusterNode(host, port) for host, port in self._url.hosts],  # type: ignore[no-untyped-call]
                    retry=_retry(),
                    ssl=self._url.scheme == "rediss",
                    **_settings(self._url, self._seconds),
                )
            return self._cluster

    def primaries(self) -> Sequence["redis.Redis"]:
        cluster = self.client()
        return [cluster.get_redis_connection(node) for node in cluster.get_primaries()]  # type: ignore[no-untyped-call]

    def owner(self, key: bytes) -> "redis.Redis":
        cluster = self.client()
        node = cluster.get_node_from_key(key)  # type: ignore[no-untyped-call]
        if node is None:
            raise SlotNotCoveredError("no node has the slot of a key")
        return cluster.get_redis_connection(node)

    def redirected(self, error: AskError) -> "redis.Redis":
        cluster = self.client()
        node = cluster.get_node(error.host, error.port)  # type: ignore[no-untyped-call]
        if node is None or isinstance(error, MovedError):
            cluster.nodes_manager.initialize()
            node = cluster.get_node(error.host, error.port)  # type: ignore[no-untyped-call]
        if node is None:
            raise error
        return cluster.get_redis_connection(node)

    def look_again(self) -> None:
        with suppress(RedisError, RedisClusterException):
            self.client().nodes_manager.initialize()

    def place(self, key: bytes) -> str:
        cluster = self._cluster
        if cluster is None:
            return ""
        nodes = cluster.nodes_manager.slots_cache.get(cluster.keyslot(key))  # type: ignore[no-untyped-call]
        return nodes[0].name if nodes else ""

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.close()
            self._cluster.disconnect_connection_pools()  # type: ignore[no-untyped-call]


def _settings(url: RedisUrl, seconds: float) -> dict[str, Any]:
    return {
        "username": url.username,
        "password": url.password,
        "socket_connect_timeout": CONTROL_SECONDS,
        "socket_timeout": seconds,
        "socket_keepalive": True,
        "decode_responses": False,
        "protocol": 2,
    }


def _sentinel(url: RedisUrl) -> Sentinel:
    """Sentinels are asked without user and password: the URL's are the master's. One that is down is passed over."""
    settings = {**_settings(url, CONTROL_SECONDS), "username": None, "password": None, "retry": Retry(NoBackoff(), 0)}
    return Sentinel(  # type: ignore[no-untyped-call]
        list(url.hosts), sentinel_kwargs={**settings, "ssl": url.scheme == "rediss"}
    )


def _encode(argument: bytes | memoryview | str | int) -> bytes | memoryview:
    return argument if isinstance(argument, bytes | memoryview) else str(argument).encode()


def _retry() -> Retry:
    """One more try on a fresh connection: every command we send may be applied twice without harm."""
    return Retry(ExponentialBackoff(cap=0.2, base=0.05), 1)
