"""A commit and a resume through the Redis store, beside plain SET and GET of the same bytes in the same parts.

The plain ones go through the same client library with the same settings, to a Redis that is asked for nothing else, and
are written in one of two ways: under fresh names each time, as a commit must, since the generation before stays until
the new one is committed; or over the values of the round before, for which Redis has warm memory. All are timed in
turns.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from statistics import median

from atlas_model.config import AtlasConfig
from bench.clock import seconds_of
from bench.stored_session import StoredSession, random_state
from engine.sessions.storage import PART_NUM_BYTES
from engine.stores.redis import GRACE_SECONDS, RedisStore
from engine.stores.redis_client import RedisClient
from engine.stores.redis_url import RedisUrl

# Stored with every generation, as the answers of the last turns are; the plain bytes have nothing of the kind.
EXTRA_NUM_BYTES = 2048


@dataclass(frozen=True, slots=True)
class TransferCost:
    """Medians of `num_rounds`. The ratio is the median of the rounds' own: commit and resume over SET and GET."""

    num_rounds: int
    snapshot_num_bytes: int
    num_parts: int
    commit_seconds: float
    resume_seconds: float
    set_seconds: float
    get_seconds: float
    ratio: float


class PlainBytes:
    """Random bytes in parts, set and got one after the other. What is set expires as a dropped generation does."""

    def __init__(self, url: str, num_bytes: int, has_fresh_names: bool) -> None:
        settings = RedisUrl.parse(url)
        self._client = RedisClient(settings)
        self._prefix = f"{settings.prefix}:bench:{secrets.token_hex(8)}"
        payload = memoryview(os.urandom(num_bytes))
        self._parts = [payload[start : start + PART_NUM_BYTES] for start in range(0, num_bytes, PART_NUM_BYTES)]
        self._has_fresh_names = has_fresh_names
        self._number = 0

    def set(self) -> None:
        self._number += self._has_fresh_names
        for index, part in enumerate(self._parts):
            self._client.bulk("SET", self._name(index), part, "EX", GRACE_SECONDS)

    def get(self) -> None:
        for index in range(len(self._parts)):
            self._client.bulk("GET", self._name(index))

    def close(self) -> None:
        self._client.close()

    def _name(self, index: int) -> bytes:
        return f"{self._prefix}:{self._number}:{index}".encode()


def measure_transfer(
    urls: tuple[str, str], config: AtlasConfig, fingerprint: str, num_rounds: int, has_fresh_names: bool
) -> TransferCost:
    """A session of random numbers at the first URL, plain bytes at the second; the first two rounds are not counted."""
    store = RedisStore(urls[0])
    store.check()
    session_id = f"store-{secrets.token_hex(8)}"
    session = StoredSession(store, session_id, config, fingerprint, random_state(config), os.urandom(EXTRA_NUM_BYTES))
    head = session.save()
    plain = PlainBytes(urls[1], head.num_bytes, has_fresh_names)
    operations = (session.save, plain.set, session.load, plain.get)
    try:
        rounds = [[seconds_of(operation) for operation in operations] for _ in range(2 + num_rounds)][2:]
    finally:
        store.delete(session.key)
        store.close()
        plain.close()
    commit, set_, resume, get = (median(column) for column in zip(*rounds, strict=True))
    return TransferCost(
        num_rounds=num_rounds,
        snapshot_num_bytes=head.num_bytes,
        num_parts=head.num_parts,
        commit_seconds=commit,
        resume_seconds=resume,
        set_seconds=set_,
        get_seconds=get,
        ratio=median((save + load) / (put + got) for save, put, load, got in rounds),
    )
