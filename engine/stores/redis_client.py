"""Commands to Redis, on whatever topology, with a deadline for each and a breaker for each server.

Three sets of connections share the settings: `control` for small commands, with short time-outs, `bulk` for parts, with
a time-out per part, and `durable` for scripts that wait for replicas or disks. Every failure becomes a
`StoreUnavailable` or a `StoreFull` (engine/stores/redis_errors.py).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from typing import Any, TypeVar

import redis
from redis import exceptions

from engine.failpoints import failpoint
from engine.stores.breaker import CircuitBreaker
from engine.stores.redis_connections import CONTROL_SECONDS, Connections, open_connections
from engine.stores.redis_errors import RedisOutage, translated
from engine.stores.redis_url import RedisUrl

# What `control` may carry: its time-out is enough for that.
SMALL_NUM_BYTES = 2 * 2**20

_BULK_SECONDS = 10.0
_NUM_CONTROL_CONNECTIONS = 16
_NUM_BULK_CONNECTIONS = 8
_MAX_NUM_REDIRECTIONS = 16
_MOVING_SECONDS = 0.05

Argument = str | bytes | memoryview | int
# Its name, then its key; or EVAL, a script, the number of its keys and these.
Command = tuple[str, Argument, *tuple[Argument, ...]]

T = TypeVar("T")


class RedisClient:
    def __init__(self, url: RedisUrl) -> None:
        """Connects at the first command, not here."""
        self._wait = url.wait
        self._control = open_connections(url, CONTROL_SECONDS, _NUM_CONTROL_CONNECTIONS)
        self._bulk = open_connections(url, _BULK_SECONDS, _NUM_BULK_CONNECTIONS)
        wait_seconds = 0.0 if url.wait is None else url.wait.milliseconds / 1000
        self._durable = open_connections(url, CONTROL_SECONDS + wait_seconds, _NUM_CONTROL_CONNECTIONS)
        self._breakers: dict[str, CircuitBreaker] = {}

    def control(self, name: str, key: bytes, *arguments: Argument) -> Any:
        """One small command."""
        return self._ask(key, lambda: _execute(self._control.client(), name, key, *arguments))

    def control_many(self, commands: Sequence[Command]) -> list[Any]:
        """Small commands in one round trip to each server that is concerned, not as a transaction."""
        if not commands:
            return []
        key = _key_of(commands[0])
        return self._ask(key, lambda: _pipelined(self._control.client(), commands, raise_on_error=True))

    def bulk_many(self, commands: Sequence[Command], num_bytes: int) -> list[Any]:
        """Commands that carry values of `num_bytes` together, in one round trip, not as a transaction.

        Where Redis refused one, the library's exception stands in the reply's place: the others may be applied.
        """
        connections = self._control if num_bytes <= SMALL_NUM_BYTES else self._bulk
        return self._ask(_key_of(commands[0]), lambda: _pipelined(connections.client(), commands, raise_on_error=False))

    def bulk(self, name: str, key: bytes, *arguments: Argument) -> Any:
        """One command that carries a part, or whose reply does."""
        return self._ask(key, lambda: _execute(self._bulk.client(), name, key, *arguments))

    def run_script(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> Any:
        """keys: at least one, all with one hash tag."""
        digest = _digest(script)

        def ask() -> Any:
            client = self._control.client()
            try:
                return _execute(client, "EVALSHA", digest, len(keys), *keys, *arguments)
            except exceptions.NoScriptError:
                return _execute(client, "EVAL", script, len(keys), *keys, *arguments)

        return self._ask(keys[0], ask)

    def run_script_durably(
        self,
        script: str,
        keys: Sequence[bytes],
        arguments: Sequence[bytes | int],
        has_written: Callable[[Any], bool] = bool,
    ) -> Any:
        """As `run_script`, and what the script wrote is where the URL wants it. Without such a wish: `run_script`.

        has_written: whether a reply tells of a write; one that does not says nothing about what was written before.
        Raises `StoreUnavailable` when too few acknowledged in time: the script has run all the same.
        """
        if self._wait is None:
            return self.run_script(script, keys, arguments)
        wait = self._wait

        def ask() -> tuple[Any, Any]:
            replies = self._run_and_wait(script, keys, arguments)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies

        reply, acknowledged = self._ask(keys[0], ask)
        if has_written(reply):
            wait.check(acknowledged)
        return reply

    def on_primaries(self, *command: Argument) -> list[Any]:
        """The reply of every server that takes writes. For questions about the servers: no breaker holds them up."""
        with translated(), _looking_again(self._control):
            return [_execute(server, *command) for server in self._control.primaries()]

    def settings_of_primaries(self, *command: Argument) -> list[dict[str, Any]]:
        """The same for INFO, CONFIG GET and CLUSTER INFO; empty where Redis does not permit the command."""

        def ask(server: "redis.Redis") -> dict[str, Any]:
            try:
                return dict(_execute(server, *command))
            except exceptions.ResponseError:
                return {}

        with translated(), _looking_again(self._control):
            return [ask(server) for server in self._control.primaries()]

    def close_breakers(self) -> None:
        """The servers have just answered."""
        self._breakers.clear()

    def close(self) -> None:
        for connections in (self._control, self._bulk, self._durable):
            connections.close()

    def _run_and_wait(self, script: str, keys: Sequence[bytes], arguments: Sequence[bytes | int]) -> tuple[Any, Any]:
        """Script and WAIT on one connection: Redis counts who has what this very connection wrote."""
        assert self._wait is not None
        server, is_asking = self._durable.owner(keys[0]), False
        call: tuple[Argument, ...] = ("EVALSHA", _digest(script), len(keys), *keys, *arguments)
        for _ in range(_MAX_NUM_REDIRECTIONS):
            asking = [("ASKING",)] if is_asking else []
            with _looking_again(self._durable):
                reply, acknowledged = _pipelined(server, [*asking, call, self._wait.command], raise_on_error=False)[-2:]
            if isinstance(reply, exceptions.NoScriptError):
                call = ("EVAL", script, *call[2:])
            elif isinstance(reply, exceptions.AskError):
                server = self._durable.redirected(reply)
                is_asking = not isinstance(reply, exceptions.MovedError)
            elif isinstance(reply, exceptions.TryAgainError):
                time.sleep(_MOVING_SECONDS)
            else:
                return reply, acknowledged
        raise exceptions.TryAgainError("redirected too often")

    def _ask(self, key: bytes, command: Callable[[], T]) -> T:
        place = self._control.place(key)
        breaker = self._breakers.get(place) or self._breakers.setdefault(place, CircuitBreaker(RedisOutage))
        with breaker.call(), translated():
            failpoint("redis.request")
            reply = command()
            failpoint("redis.reply")
            return reply


@contextmanager
def _looking_again(connections: Connections) -> Iterator[None]:
    """For commands to one server that the library does not route: were it gone, the next one would go there too."""
    try:
        yield
    except (exceptions.ConnectionError, exceptions.TimeoutError):
        connections.look_again()
        raise


def _key_of(command: Command) -> bytes:
    name, first, *rest = command
    key = rest[1] if name == "EVAL" else first
    assert isinstance(key, bytes)
    return key


def _digest(script: str) -> str:
    return sha1(script.encode(), usedforsecurity=False).hexdigest()


def _pipelined(client: Any, commands: Sequence[Sequence[Argument]], raise_on_error: bool) -> list[Any]:
    """The replies; unless they are to be raised, the library's exception stands in a refused command's place."""
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        _execute(pipeline, *command)
    return list(pipeline.execute(raise_on_error))


def _execute(client: Any, *command: Argument) -> Any:
    return client.execute_command(*command)
