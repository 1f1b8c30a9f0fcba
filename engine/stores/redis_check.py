"""Whether a Redis is fit to keep sessions, and how durable what it acknowledges is.

Each check asks every server that takes writes: that it answers and takes writes, that it drops no keys, what it does
with its append-only file. Versions, limits and commands are looked at once. What is only unwise is logged, once.
"""

import logging
from itertools import pairwise
from typing import Any

from engine.errors import StoreMisconfigured, StoreUnavailable
from engine.stores.redis_client import RedisClient
from engine.stores.redis_url import RedisUrl

_MIN_VERSION = (6, 2)
_WAITAOF_VERSION = (7, 2)
# Parts have 4 to 8 MiB.
_MIN_VALUE_NUM_BYTES = 8 * 2**20
# A replica that is sent a whole save at once is cut off when this much of it waits.
_MIN_REPLICA_BUFFER_NUM_BYTES = 2**30
_DURABILITIES = ("unknown", "none", "no", "everysec", "always")

_logger = logging.getLogger(__name__)


class RedisCheck:
    def __init__(self, url: RedisUrl, client: RedisClient) -> None:
        self._url = url
        self._client = client
        self._is_first = True

    def run(self) -> str:
        """The durability. Raises `StoreMisconfigured` and `StoreUnavailable` with one line of reason."""
        self._client.on_primaries("PING")
        servers = self._client.settings_of_primaries("INFO")
        for server in servers:
            self._check_role(server)
            self._check_policy(server)
        if self._url.is_cluster:
            self._check_cluster()
        files = self._client.settings_of_primaries("CONFIG GET", "append*")
        durability = min((_durability(file) for file in files), key=_DURABILITIES.index)
        if self._is_first:
            self._check_limits(servers)
            self._check_wait(servers, durability)
            self._is_first = False
        self._client.close_breakers()
        return durability if self._url.wait is None else self._url.wait.durability

    def _check_role(self, server: dict[str, Any]) -> None:
        mode = server.get("redis_mode", "unknown")
        if mode == "sentinel":
            raise StoreMisconfigured("this is a Redis sentinel: add ?sentinel=NAME to the URL")
        if mode == "cluster" and not self._url.is_cluster:
            raise StoreMisconfigured("this Redis is a node of a Cluster: add ?cluster=1 to the URL")
        if server.get("role") == "slave":
            raise StoreUnavailable("this Redis is a read-only replica")

    def _check_policy(self, server: dict[str, Any]) -> None:
        policy = server.get("maxmemory_policy", "unknown")
        if policy != "noeviction" and not self._url.allows_eviction:
            raise StoreMisconfigured(
                f"Redis' maxmemory-policy is {policy}: it would drop pieces of sessions. Set it to noeviction"
                " (deploy/redis.conf), or add ?allow_eviction=1 to the URL to lose sessions knowingly"
            )

    def _check_cluster(self) -> None:
        for node in self._client.settings_of_primaries("CLUSTER INFO"):
            if node.get("cluster_state", "ok") != "ok":
                raise StoreUnavailable("the Redis Cluster is down")

    def _check_limits(self, servers: list[dict[str, Any]]) -> None:
        for server in servers:
            if (version := _version(server)) < _MIN_VERSION:
                raise StoreMisconfigured(
                    f"this Redis is {_text(version)}: sessions need {_text(_MIN_VERSION)} or newer"
                )
        if any(server.get("maxmemory") == 0 for server in servers):
            _logger.warning("Redis has no maxmemory: a limit refuses a commit, a full machine ends Redis")
        for settings in self._client.settings_of_primaries("CONFIG GET", "proto-max-bulk-len"):
            if int(settings.get("proto-max-bulk-len", _MIN_VALUE_NUM_BYTES)) < _MIN_VALUE_NUM_BYTES:
                raise StoreMisconfigured(f"Redis' proto-max-bulk-len is less than {_MIN_VALUE_NUM_BYTES}: no part fits")
        buffers = self._client.settings_of_primaries("CONFIG GET", "client-output-buffer-limit")
        for server, settings in zip(servers, buffers, strict=True):
            num_bytes = _replica_buffer_num_bytes(str(settings.get("client-output-buffer-limit", "")))
            if server.get("connected_slaves") and 0 < num_bytes < _MIN_REPLICA_BUFFER_NUM_BYTES:
                _logger.warning(
                    "Redis' client-output-buffer-limit for replicas is %d: a large save may cut a replica off",
                    num_bytes,
                )

    def _check_wait(self, servers: list[dict[str, Any]], durability: str) -> None:
        wait = self._url.wait
        if wait is None:
            return
        if wait.num_local is not None and min(map(_version, servers)) < _WAITAOF_VERSION:
            raise StoreMisconfigured(f"this Redis has no WAITAOF: it came with {_text(_WAITAOF_VERSION)} and Valkey")
        if wait.num_local and durability == "none":
            raise StoreMisconfigured("waitaof in the Redis URL needs a Redis with an append-only file")
        self._client.on_primaries(*wait.trial)
        num_replicas = min(int(server.get("connected_slaves", wait.num_replicas)) for server in servers)
        if num_replicas < wait.num_replicas:
            _logger.warning(
                "commits wait for %d replicas and Redis has %d: none is acknowledged until it has more",
                wait.num_replicas,
                num_replicas,
            )


def _version(server: dict[str, Any]) -> tuple[int, ...]:
    """Major and minor, of the commands: Valkey says 7.2 here. A server that does not tell is taken for a fit one."""
    version = str(server.get("redis_version", _text(_WAITAOF_VERSION)))
    return tuple(int(number) for number in version.split(".")[:2])


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _durability(settings: dict[str, Any]) -> str:
    """`none` without an append-only file, else its appendfsync; `unknown` when Redis does not tell."""
    if not settings:
        return "unknown"
    return str(settings["appendfsync"]) if settings["appendonly"] == "yes" else "none"


def _replica_buffer_num_bytes(limits: str) -> int:
    """The hard limit for replicas in `normal 0 0 0 slave 268435456 67108864 60 pubsub …`; 0 is none."""
    words = limits.split()
    for name, number in pairwise(words):
        if name in ("slave", "replica"):
            return int(number)
    return 0
