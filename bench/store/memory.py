"""What a transfer of a large snapshot asks of others: host memory in its own process, waiting of Redis' other clients.

Commits and loads happen in a process each, which holds nothing else of that size; meanwhile another client of the same
Redis, here, sends a PING every few milliseconds.
"""

from __future__ import annotations

import multiprocessing
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from atlas_model.config import AtlasConfig
from atlas_model.state import session_num_bytes
from bench.clock import seconds_of
from bench.stored_session import StoredSession, load_session, random_state
from bench.summary import percentile
from engine.stores.base import SessionKey
from engine.stores.redis import RedisStore
from engine.stores.redis_client import RedisClient
from engine.stores.redis_url import RedisUrl

FINGERPRINT = "bench"
PING_SECONDS = 0.005
IDLE_SECONDS = 1.0
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Pings:
    """How long another client waited for its PING, in seconds."""

    n: int
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class TransferMemory:
    """The largest of `num_rounds`, in sizes of the snapshot.

    commit_ratio: the state and the peak of what the commit added to it. load_ratio: the peak of what the load added to
    a process without any state; the loaded state is of that. idle_pings: before, with nobody else at this Redis.
    """

    num_rounds: int
    snapshot_num_bytes: int
    commit_ratio: float
    load_ratio: float
    idle_pings: Pings
    commit_pings: Pings
    load_pings: Pings


def measure_memory(url: str, config: AtlasConfig, num_rounds: int) -> TransferMemory:
    session_id = f"store-{secrets.token_hex(8)}"
    store = RedisStore(url)
    try:
        with _pinging(url) as idle:
            time.sleep(IDLE_SECONDS)
        added_by_commit, commit_pings = _in_a_process(_commit, url, session_id, config, num_rounds)
        head = store.read_head(SessionKey("bench", session_id))
        assert head is not None
        added_by_load, load_pings = _in_a_process(_load, url, session_id, config, num_rounds)
    finally:
        store.delete(SessionKey("bench", session_id))
        store.close()
    return TransferMemory(
        num_rounds=num_rounds,
        snapshot_num_bytes=head.num_bytes,
        commit_ratio=(session_num_bytes(config) + added_by_commit) / head.num_bytes,
        load_ratio=added_by_load / head.num_bytes,
        idle_pings=_summarise(idle),
        commit_pings=commit_pings,
        load_pings=load_pings,
    )


Transfer = Callable[[RedisStore, str, AtlasConfig], Callable[[], object]]


def _commit(store: RedisStore, session_id: str, config: AtlasConfig) -> Callable[[], object]:
    return StoredSession(store, session_id, config, FINGERPRINT, random_state(config), extra=b"").save


def _load(store: RedisStore, session_id: str, config: AtlasConfig) -> Callable[[], object]:
    return lambda: load_session(store, SessionKey("bench", session_id), config, FINGERPRINT)


def _in_a_process(
    prepare: Transfer, url: str, session_id: str, config: AtlasConfig, num_rounds: int
) -> tuple[int, Pings]:
    """The most bytes that a round added to the process, and what the PINGs during the rounds took."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    arguments = (prepare, url, session_id, config, num_rounds, theirs)
    process = multiprocessing.get_context("spawn").Process(target=_repeat, args=arguments)
    process.start()
    theirs.close()
    try:
        ours.recv()
        with _pinging(url) as waits:
            ours.send(None)
            added_num_bytes: int = ours.recv()
    except EOFError as error:
        raise SystemExit("bench store: the process that transfers a snapshot has failed") from error
    finally:
        ours.close()
        process.join()
    return added_num_bytes, _summarise(waits)


def _repeat(
    prepare: Transfer,
    url: str,
    session_id: str,
    config: AtlasConfig,
    num_rounds: int,
    connection: Connection[int | None, None],
) -> None:
    """In the other process: say that it is ready, wait for the word, send the most bytes that a round added."""
    store = RedisStore(url)
    store.check()
    transfer = prepare(store, session_id, config)
    connection.send(None)
    connection.recv()
    connection.send(max(_added_num_bytes(transfer) for _ in range(num_rounds)))
    store.close()


def _added_num_bytes(transfer: Callable[[], object]) -> int:
    """Peak resident memory while it runs, beyond what is resident before."""
    before = _status_num_bytes("VmRSS")
    # 5 sets the peak back to what is resident now (proc(5)).
    CLEAR_REFS.write_text("5")
    transfer()
    return _status_num_bytes("VmHWM") - before


def _status_num_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])


def _summarise(waits: list[float]) -> Pings:
    return Pings(len(waits), percentile(waits, 99), max(waits))


@contextmanager
def _pinging(url: str) -> Iterator[list[float]]:
    """Seconds that each PING took, one every PING_SECONDS until the end of the block."""
    waits: list[float] = []
    has_ended = threading.Event()
    client = RedisClient(RedisUrl.parse(url))
    client.on_primaries("PING")

    def ping() -> None:
        while not has_ended.is_set():
            waits.append(seconds_of(lambda: client.on_primaries("PING")))
            time.sleep(PING_SECONDS)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield waits
    finally:
        has_ended.set()
        thread.join()
        client.close()
