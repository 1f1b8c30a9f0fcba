"""The names of a Redis store's keys. The braces are the Cluster hash tag: a session's keys live on one node.

{prefix}:{<tenant>/<session>}:head                 hash: fence, recent, head (engine/stores/redis_scripts.py)
{prefix}:{<tenant>/<session>}:p:<generation>:<i>   one part
{prefix}:{<tenant>/<session>}:x:<generation>       the extra, if there is one
{prefix}:{<tenant>/<session>}:generations          sorted set of all generations with bytes (redis_generations.py)
{prefix}:{<tenant>/<session>}:log:<id>             the token log, if there is one
{prefix}:{<tenant>/<session>}:lease
{prefix}:{<tenant>/<session>}:absent               a second long, where a deletion waits for replicas
{prefix}:index:<tenant>                            sorted set of session ids, for listing; never trusted
{prefix}:usage:{{prefix}:index:<tenant>}           hash: bytes by session id, on the index's node; never trusted

A copy in quarantine has the name of its part or extra with `:quarantined` behind it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.stores.base import Generation, Head, SessionKey


@dataclass(frozen=True, slots=True)
class RedisKeys:
    prefix: str

    def head(self, key: SessionKey) -> bytes:
        return self._name(key, "head")

    def lease(self, key: SessionKey) -> bytes:
        return self._name(key, "lease")

    def generations(self, key: SessionKey) -> bytes:
        return self._name(key, "generations")

    def absent(self, key: SessionKey) -> bytes:
        return self._name(key, "absent")

    def parts(self, key: SessionKey, generation: Generation) -> list[bytes]:
        return self.all_of(key, generation.generation, generation.num_parts)[:-1]

    def extras(self, key: SessionKey, generation: Generation) -> list[bytes]:
        """One name, or none when the generation has no extra."""
        return self.all_of(key, generation.generation, 0) if generation.extra_num_bytes else []

    def all_of(self, key: SessionKey, generation: str, num_parts: int) -> list[bytes]:
        """The names of a generation of which no more is known; that of the extra may stand for nothing."""
        parts = [self._name(key, f"p:{generation}:{index}") for index in range(num_parts)]
        return [*parts, self._name(key, f"x:{generation}")]

    def everything(self, key: SessionKey, generations: Iterable[Generation]) -> list[bytes]:
        """Parts and extras of all these generations."""
        return [
            name for generation in generations for name in (*self.parts(key, generation), *self.extras(key, generation))
        ]

    def log(self, key: SessionKey, log_id: str) -> bytes:
        return self._name(key, f"log:{log_id}")

    def logs(self, key: SessionKey, head: Head | None) -> list[bytes]:
        """One name, or none when the session has no token log."""
        return [] if head is None or head.log_id is None else [self.log(key, head.log_id)]

    def index(self, tenant: str) -> bytes:
        return f"{self.prefix}:index:{tenant}".encode()

    def usage(self, tenant: str) -> bytes:
        return b"%s:usage:{%s}" % (self.prefix.encode(), self.index(tenant))

    def _name(self, key: SessionKey, rest: str) -> bytes:
        return f"{self.prefix}:{{{key.tenant}/{key.session_id}}}:{rest}".encode()
