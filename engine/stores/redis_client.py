"""The connection to Redis: where it is, how long we wait, and what its failures mean.

Two clients share the settings: `control` for small commands, with short time-outs, and `bulk` for parts, with a
time-out per part. Every failure of the library or the server becomes a `StoreUnavailable` or a `StoreFull`; no message
holds a password, a key or a value.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from typing import Any, Self, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis import exceptions
from redis.backoff import ExponentialBackoff
from redis.connection import PythonRespSerializer
from redis.retry import Retry

from engine.errors import StoreFull, StoreMisconfigured, StoreUnavailable
from engine.failpoints import failpoint

# What `control` may carry: its time-out is enough for that.
SMALL_NUM_BYTES = 2 * 2**20

_CONTROL_SECONDS = 1.0
_BULK_SECONDS = 10.0
_POOL_SECONDS = 5.0
_NUM_CONTROL_CONNECTIONS = 16
_NUM_BULK_CONNECTIONS = 8
_PACKED_NUM_BYTES = 6000

_REASONS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.BusyLoadingError, "Redis is loading its data"),
    (exceptions.AuthenticationError, "Redis refused the credentials"),
    (exceptions.AuthorizationError, "Redis refused the credentials"),
    (exceptions.NoPermissionError, "Redis does not permit this user a command that sessions need"),
    (exceptions.ReadOnlyError, "this Redis is a read-only replica"),
    (exceptions.ConnectionError, "Redis cannot be reached"),
    (exceptions.TimeoutError, "Redis did not answer in time"),
    (exceptions.ResponseError, "Redis refused a command"),
)

Argument = str | bytes | memoryview | int

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """`redis://[user[:password]@]host[:port][/database][?prefix=atlas&allow_eviction=1]`, or `rediss://` for TLS."""

    scheme: str
    host: str
    port: int
    database: int
    username: str | None
    password: str | None
    prefix: str
    allows_eviction: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises `StoreMisconfigured`; the message never repeats the URL, which may hold a password."""
        try:
            split = urlsplit(url)
            options = {name: values[-1] for name, values in parse_qs(split.query, keep_blank_values=True).items()}
            port = split.port or 6379
            database = int(split.path.strip("/") or 0)
        except ValueError:
            # NOTE: no cause: the library's own message may quote the password.
            raise StoreMisconfigured("the Redis URL has a port or a database that is not a number") from None
        prefix = options.pop("prefix", "atlas")
        allow_eviction = options.pop("allow_eviction", "0")
        if options:
            raise StoreMisconfigured(f"the Redis URL has an unknown option {min(options)!r}")
        if allow_eviction not in ("0", "1"):
            raise StoreMisconfigured("allow_eviction in the Redis URL is 0 or 1")
        if not prefix.isascii() or not prefix.replace("-", "").replace("_", "").isalnum():
            raise StoreMisconfigured("the prefix in the Redis URL has characters other than letters, digits, - and _")
        return cls(
            scheme=split.scheme,
            host=split.hostname or "localhost",
            port=port,
            database=database,
            username=unquote(split.username) if split.username else None,
            password=unquote(split.password) if split.password else None,
            prefix=prefix,
            allows_eviction=allow_eviction == "1",
        )

    @property
    def without_secrets(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}/{self.database}"


class RedisClient:
    def __init__(self, url: RedisUrl) -> None:
        """Connects at the first command, not here."""
        self._control = _client(url, _CONTROL_SECONDS, _NUM_CONTROL_CONNECTIONS)
        self._bulk = _client(url, _BULK_SECONDS, _NUM_BULK_CONNECTIONS)

    def control(self, *command: Argument) -> Any:
        """One small command, its name first."""
        return _ask(lambda: _execute(self._control, *command))

    def control_many(self, commands: Sequence[Sequence[Argument]]) -> list[Any]:
        """Small commands in one round trip, not as a transaction."""

        return _ask(lambda: _execute_many(self._control, commands, raise_on_error=True))

    def bulk_many(self, commands: Sequence[Sequence[Argument]], num_bytes: int) -> list[Any]:
        """Commands that carry values of `num_bytes` together, in one round trip, not as a transaction.

        Where Redis refused one, the library's exception stands in the reply's place: the others may be applied.
        """
        client = self._control if num_bytes <= SMALL_NUM_BYTES else self._bulk
        return _ask(lambda: _execute_many(client, commands, raise_on_error=False))

    def bulk(self, *command: Argument) -> Any:
        """One command that carries a part, or whose reply does."""
        return _ask(lambda: _execute(self._bulk, *command))

    def run_script(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> Any:
        digest = sha1(script.encode(), usedforsecurity=False).hexdigest()

        def ask() -> Any:
            try:
                return _execute(self._control, "EVALSHA", digest, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:
                return _execute(self._control, "EVAL", script, len(keys), *keys, *arguments)

        return _ask(ask)

    def read_settings(self, *command: Argument) -> dict[str, Any]:
        """The reply of INFO or CONFIG GET; empty when Redis does not permit the command."""

        def ask() -> dict[str, Any]:
            try:
                return dict(_execute(self._control, *command))
            except exceptions.ResponseError:
                return {}

        return _ask(ask)

    def close(self) -> None:
        for client in (self._control, self._bulk):
            client.close()
            client.connection_pool.disconnect()


def _client(url: RedisUrl, seconds: float, num_connections: int) -> redis.Redis:
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        max_connections=num_connections,
        timeout=_POOL_SECONDS,
        connection_class=redis.SSLConnection if url.scheme == "rediss" else redis.Connection,
        host=url.host,
        port=url.port,
        db=url.database,
        username=url.username,
        password=url.password,
        socket_connect_timeout=_CONTROL_SECONDS,
        socket_timeout=seconds,
        socket_keepalive=True,
        decode_responses=False,
        protocol=2,
        # NOTE: the packer of hiredis copies every part twice; this one sends a memoryview as it lies.
        command_packer=PythonRespSerializer(_PACKED_NUM_BYTES, _encode),
        # One more try on a fresh connection: every command we send may be applied twice without harm.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), 1),
    )
    return redis.Redis(connection_pool=pool)


def _encode(argument: Argument) -> bytes | memoryview:
    return argument if isinstance(argument, bytes | memoryview) else str(argument).encode()


def _execute(client: redis.Redis, *command: Argument) -> Any:
    return client.execute_command(*command)  # type: ignore[no-untyped-call]


def _execute_many(client: redis.Redis, commands: Sequence[Sequence[Argument]], raise_on_error: bool) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        _execute(pipeline, *command)
    return list(pipeline.execute(raise_on_error))


def _ask(command: Callable[[], T]) -> T:
    with translated():
        failpoint("redis.request")
        reply = command()
        failpoint("redis.reply")
        return reply


@contextmanager
def translated() -> Iterator[None]:
    """Whatever Redis, its library or the network raises, in the words of `engine.errors`."""
    try:
        yield
    except exceptions.RedisError as error:
        if isinstance(error, exceptions.OutOfMemoryError) or "OOM command not allowed" in str(error):
            raise StoreFull("Redis has reached its maxmemory") from error
        reason = next((text for kind, text in _REASONS if isinstance(error, kind)), "Redis failed")
        raise StoreUnavailable(reason) from error
    except OSError as error:
        raise StoreUnavailable("Redis cannot be reached") from error
