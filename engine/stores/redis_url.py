"""The URL of a Redis store: which servers, as whom, and how durable a commit has to be."""

from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

from engine.errors import StoreMisconfigured
from engine.stores.redis_wait import Wait

_REDIS_PORT = 6379
_SENTINEL_PORT = 26379
_MAX_WAIT_MILLISECONDS = 10_000


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """`redis://[user[:password]@]host[:port][,host[:port]…][/database][?option=value&…]`, or `rediss://` for TLS.

    One host is one server. With `sentinel=NAME` the hosts are sentinels and the server is the master of that name; user
    and password are the master's, sentinels are asked without. With `cluster=1` they are nodes to begin with.
    `replicas=N` and `waitaof=LOCAL,REPLICAS` say what a commit waits for, at most `wait_ms` (1000).
    `prefix=atlas` begins every key; `allow_eviction=1` accepts a server that drops keys.
    """

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    database: int
    username: str | None
    password: str | None
    sentinel: str | None
    is_cluster: bool
    wait: Wait | None
    prefix: str
    allows_eviction: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises `StoreMisconfigured`; the message never repeats the URL, which may hold a password."""
        try:
            split = urlsplit(url)
            database = int(split.path.strip("/") or 0)
            credentials, _, hosts = split.netloc.rpartition("@")
            options = dict(parse_qsl(split.query, keep_blank_values=True))
            sentinel = options.pop("sentinel", None)
            default_port = _REDIS_PORT if sentinel is None else _SENTINEL_PORT
            names = hosts.split(",")
            addresses = tuple(_address(name, default_port) for name in names)
        except ValueError:
            # NOTE: no cause: the library's own message may quote the password.
            raise StoreMisconfigured("the Redis URL has a port or a database that is not a number") from None
        if len(names) > 1 and "" in names:
            raise StoreMisconfigured("the Redis URL has a comma without a host")
        username, _, password = credentials.partition(":")
        parsed = cls(
            scheme=split.scheme,
            hosts=addresses,
            database=database,
            username=unquote(username) or None,
            password=unquote(password) or None,
            sentinel=sentinel,
            is_cluster=_flag(options, "cluster"),
            wait=_wait(options),
            prefix=options.pop("prefix", "atlas"),
            allows_eviction=_flag(options, "allow_eviction"),
        )
        if options:
            raise StoreMisconfigured(f"the Redis URL has an unknown option {min(options)!r}")
        parsed._check()
        return parsed

    @property
    def without_secrets(self) -> str:
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        topology = "?cluster=1" if self.is_cluster else "" if self.sentinel is None else f"?sentinel={self.sentinel}"
        return f"{self.scheme}://{hosts}/{self.database}{topology}"

    def _check(self) -> None:
        if self.is_cluster and self.sentinel is not None:
            raise StoreMisconfigured("the Redis URL asks for sentinel and for cluster: it can be one of them")
        if self.is_cluster and self.database != 0:
            raise StoreMisconfigured("a Redis Cluster has database 0 only")
        if self.sentinel == "":
            raise StoreMisconfigured("sentinel in the Redis URL is the name of a master")
        if len(self.hosts) > 1 and not self.is_cluster and self.sentinel is None:
            raise StoreMisconfigured("several hosts in the Redis URL need sentinel=NAME or cluster=1")
        if not self.prefix.isascii() or not self.prefix.replace("-", "").replace("_", "").isalnum():
            raise StoreMisconfigured("the prefix in the Redis URL has characters other than letters, digits, - and _")


def _address(text: str, default_port: int) -> tuple[str, int]:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    number = int(port) if port else default_port
    if not 0 < number < 2**16:
        raise ValueError
    return host.lower() or "localhost", number


def _flag(options: dict[str, str], name: str) -> bool:
    value = options.pop(name, "0")
    if value not in ("0", "1"):
        raise StoreMisconfigured(f"{name} in the Redis URL is 0 or 1")
    return value == "1"


def _wait(options: dict[str, str]) -> Wait | None:
    replicas, waitaof = options.pop("replicas", None), options.pop("waitaof", None)
    milliseconds = options.pop("wait_ms", None)
    if replicas is None and waitaof is None:
        if milliseconds is not None:
            raise StoreMisconfigured("wait_ms in the Redis URL needs replicas or waitaof")
        return None
    if replicas is not None and waitaof is not None:
        raise StoreMisconfigured("the Redis URL asks for replicas and for waitaof: it can be one of them")
    wait_ms = _count(milliseconds or "1000", "wait_ms")
    if not 1 <= wait_ms <= _MAX_WAIT_MILLISECONDS:
        raise StoreMisconfigured(f"wait_ms in the Redis URL is between 1 and {_MAX_WAIT_MILLISECONDS}")
    if replicas is not None:
        wait = Wait(_count(replicas, "replicas"), None, wait_ms)
    else:
        local, separator, remote = (waitaof or "").partition(",")
        if local not in ("0", "1") or not separator:
            raise StoreMisconfigured("waitaof in the Redis URL is LOCAL,REPLICAS, LOCAL being 0 or 1")
        wait = Wait(_count(remote, "waitaof"), int(local), wait_ms)
    if not wait.num_replicas and not wait.num_local:
        raise StoreMisconfigured("replicas or waitaof in the Redis URL asks for nobody")
    return wait


def _count(text: str, name: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise StoreMisconfigured(f"{name} in the Redis URL is not a number that can be")
    return int(text)
