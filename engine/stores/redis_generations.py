"""Which generations of a session have bytes in Redis, whether its head names them or not: staged ones, kept ones, those
that wait for their readers, and copies in quarantine. A deletion reads here what it has to delete.

A sorted set beside the head. A member is `generation:num_parts`, with `:quarantined` behind it for a copy, or `id:log`
for a token log; its score is when, by Redis' clock in milliseconds, its keys will have expired, and infinite for those
that do not expire. A member is entered before the first of its keys, and a flip removes those whose time is over
(redis_scripts.py).
"""

from collections.abc import Iterable, Iterator

from engine.stores.base import Generation, SessionKey
from engine.stores.redis_client import Command, RedisClient
from engine.stores.redis_keys import RedisKeys
from engine.stores.redis_scripts import REGISTER, RETIRE

_QUARANTINED = b":quarantined"
_LOG = "log"
_BATCH = 500


def member(generation: Generation) -> bytes:
    return f"{generation.generation}:{generation.num_parts}".encode()


def members(generations: Iterable[Generation], log_ids: Iterable[str]) -> bytes:
    """As the scripts take them, separated by spaces."""
    return b" ".join([*map(member, generations), *map(_log_member, log_ids)])


def _log_member(log_id: str) -> bytes:
    return f"{log_id}:{_LOG}".encode()


class RedisGenerations:
    def __init__(self, client: RedisClient, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys

    def entry(self, key: SessionKey, generation: Generation, seconds: int) -> Command:
        """The command that enters a generation whose keys live no longer than `seconds`."""
        return self._register(key, member(generation), seconds)

    def log_entry(self, key: SessionKey, log_id: str, seconds: int) -> Command:
        """The same for a token log."""
        return self._register(key, _log_member(log_id), seconds)

    def quarantine(self, key: SessionKey, generation: Generation, seconds: int) -> None:
        """Copy what there is of a generation, to live `seconds`."""
        self._client.control_many([self._register(key, member(generation) + _QUARANTINED, seconds)])
        for source in self._keys.everything(key, [generation]):
            target = source + _QUARANTINED
            self._client.control("COPY", source, target, "REPLACE")
            self._client.control("EXPIRE", target, seconds)

    def known(self, key: SessionKey) -> list[bytes]:
        """All members."""
        names: list[bytes] = self._client.control("ZRANGE", self._keys.generations(key), 0, -1)
        return names

    def delete(self, key: SessionKey, known: list[bytes], seconds: int) -> None:
        """Unlink the keys of these members, and forget them. Others, which a writer that is too late may have entered,
        are remembered for `seconds`."""
        for batch in _batches(name for each in known for name in self._names(key, each)):
            self._client.control("UNLINK", *batch)
        for batch in _batches(known):
            self._client.control("ZREM", self._keys.generations(key), *batch)
        self._client.control("PEXPIRE", self._keys.generations(key), seconds * 1000)

    def retire(self, key: SessionKey, seconds: int) -> None:
        """Let what a lost head has left expire. Nothing happens when there is a head."""
        known = self.known(key)
        names = [name for each in known for name in self._names(key, each)]
        for batch in _batches([*names, self._keys.generations(key)] if known else []):
            self._client.run_script(RETIRE, [self._keys.head(key), *batch], [seconds * 1000])

    def _register(self, key: SessionKey, name: bytes, seconds: int) -> Command:
        return ("EVAL", REGISTER, 1, self._keys.generations(key), name, seconds * 1000)

    def _names(self, key: SessionKey, name: bytes) -> list[bytes]:
        generation, num_parts, *rest = name.decode().split(":")
        if num_parts == _LOG:
            return [self._keys.log(key, generation)]
        return [found + _QUARANTINED if rest else found for found in self._keys.all_of(key, generation, int(num_parts))]


def _batches(names: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for name in names:
        batch.append(name)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
