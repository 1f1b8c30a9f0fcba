"""The stores that the machine runs on: how each is opened, killed, and made to believe that time has passed."""

import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import redis

from engine.stores.base import Head, SessionKey, Store
from engine.stores.local import LocalStore
from engine.stores.memory import MemoryStore
from engine.stores.redis import GRACE_SECONDS, STAGING_SECONDS, RedisStore
from engine.stores.redis_keys import RedisKeys
from tests.faults.state_machine.model import NUM_KEPT
from tests.redis_server import RedisServer

# Twice the staging time is for how long a deletion remembers what a late writer may have staged.
LONGEST_SECONDS = max(GRACE_SECONDS, 2 * STAGING_SECONDS) + 1


class Clock:
    """`time`, as far as idle times need it, and ahead of it."""

    def __init__(self) -> None:
        self.ahead_seconds = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds


class Backend(Protocol):
    can_be_killed: bool
    ends_its_replicas: bool
    """Whether a kill takes the replicas along, and begins every session's idle time anew."""

    def begin(self) -> None:
        """An empty store."""

    def open(self) -> Store:
        """For one more replica. Closed by `end`."""

    def kill(self) -> None:
        """`kill -9`, and start again on what is left."""

    def let_pass(self, seconds: float) -> None: ...

    def check(self, heads: dict[SessionKey, Head]) -> None:
        """Asserts that nothing is kept for ever but what these heads name, and after a while nothing at all."""

    def end(self) -> None: ...


class MemoryBackend:
    can_be_killed = False
    ends_its_replicas = False

    def __init__(self, clock: Clock, make_store: Callable[[int], MemoryStore] = MemoryStore) -> None:
        self._clock = clock
        self._make_store = make_store

    def begin(self) -> None:
        self._store = self._make_store(NUM_KEPT)

    def open(self) -> Store:
        return self._store

    def kill(self) -> None:
        raise AssertionError("it would forget everything")

    def let_pass(self, seconds: float) -> None:
        self._clock.ahead_seconds += seconds

    def check(self, heads: dict[SessionKey, Head]) -> None:
        named = {kept.generation for head in heads.values() for kept in head.generations}
        assert self._store._blobs.keys() == named

    def end(self) -> None:
        self._store.close()


class LocalBackend:
    can_be_killed = True
    ends_its_replicas = True

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folders = (folder / str(number) for number in itertools.count())
        self._clock = clock

    def begin(self) -> None:
        self._folder = next(self._folders)
        self._store = LocalStore(self._folder, NUM_KEPT)

    def open(self) -> Store:
        return self._store

    def kill(self) -> None:
        self._store.close()
        self._store = LocalStore(self._folder, NUM_KEPT)

    def let_pass(self, seconds: float) -> None:
        self._clock.ahead_seconds += seconds

    def check(self, heads: dict[SessionKey, Head]) -> None:
        named = {kept.generation for head in heads.values() for kept in head.generations}
        assert named <= self._blobs()
        # What a killed server leaves behind goes at the next start.
        self.kill()
        assert self._blobs() == named

    def end(self) -> None:
        self._store.close()

    def _blobs(self) -> set[str]:
        return {path.name for path in (self._folder / "blobs").iterdir()}


class RedisBackend:
    """Time is Redis' own, and passes by taking it from every time-to-live."""

    can_be_killed = True
    ends_its_replicas = False

    def __init__(self, server: RedisServer, make_store: Callable[[str, int], RedisStore] = RedisStore) -> None:
        self._server = server
        self._make_store = make_store
        self._opened: list[RedisStore] = []
        self._prefixes = (f"machine{number}" for number in itertools.count())

    def begin(self) -> None:
        self._prefix = next(self._prefixes)
        self._client: Any = redis.Redis.from_url(self._server.url)
        self._client.flushall()

    def open(self) -> Store:
        store = self._make_store(f"{self._server.url}?prefix={self._prefix}", NUM_KEPT)
        self._opened.append(store)
        return store

    def kill(self) -> None:
        self._server.kill()
        self._server.start()

    def let_pass(self, seconds: float) -> None:
        milliseconds = int(seconds * 1000)
        for name, left in self._milliseconds_left().items():
            if left is not None:
                self._client.pexpire(name, max(1, left - milliseconds))
        time.sleep(0.002)

    def check(self, heads: dict[SessionKey, Head]) -> None:
        lasting = {name for key, head in heads.items() if head.ttl_seconds is None for name in self._names(key, head)}
        ending = {
            name for key, head in heads.items() if head.ttl_seconds is not None for name in self._names(key, head)
        }
        left = self._milliseconds_left()
        assert {name for name, milliseconds in left.items() if milliseconds is None} == lasting
        assert ending <= left.keys()
        self.let_pass(LONGEST_SECONDS)
        assert self._milliseconds_left().keys() == lasting

    def end(self) -> None:
        for store in self._opened:
            store.close()
        self._opened.clear()
        self._client.close()

    def _names(self, key: SessionKey, head: Head) -> set[bytes]:
        keys = RedisKeys(self._prefix)
        return {keys.head(key), keys.generations(key), *keys.everything(key, head.generations)}

    def _milliseconds_left(self) -> dict[bytes, int | None]:
        """Of every key but the index, which is never trusted; None is for ever."""
        names = [name for name in self._client.scan_iter(count=1000) if b":index:" not in name]
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.pttl(name)
        left = dict(zip(names, pipeline.execute(), strict=True))
        return {name: None if value == -1 else value for name, value in left.items() if value != -2}
