"""A tenant's sessions in Redis: their ids in order, and the bytes of each with their sum.

Beside the sessions and never trusted: an entry is made before a commit's parts are written, so that a session which
exists is in it, and what a failed commit, an expiry or a lost head left in it is found when somebody looks.
"""

from collections.abc import Sequence

from engine.stores.base import SessionKey, TenantUsage
from engine.stores.redis_client import Command, RedisClient
from engine.stores.redis_keys import RedisKeys
from engine.stores.redis_scripts import ENLIST, SUM_UP, TOTAL_FIELD, UNLIST


class RedisIndex:
    def __init__(self, client: RedisClient, keys: RedisKeys) -> None:
        self._client = client
        self._keys = keys

    def entry(self, key: SessionKey, num_bytes: int) -> Command:
        """The command that makes or changes a session's entry."""
        index, usage = self._names(key.tenant)
        return ("EVAL", ENLIST, 2, index, usage, key.session_id, num_bytes)

    def enlist(self, key: SessionKey, num_bytes: int) -> None:
        self._client.control_many([self.entry(key, num_bytes)])

    def unlist(self, key: SessionKey) -> None:
        self._client.run_script(UNLIST, self._names(key.tenant), [key.session_id.encode()])

    def page(self, tenant: str, limit: int, after: str | None) -> list[str]:
        """At most `limit` session ids greater than `after`, in order."""
        low = "-" if after is None else f"({after}"
        names = self._client.control("ZRANGEBYLEX", self._keys.index(tenant), low, "+", "LIMIT", 0, limit)
        return [name.decode() for name in names]

    def counted(self, tenant: str, session_ids: Sequence[str]) -> list[int | None]:
        """The bytes that the entries hold; None where a server that did not count has made one."""
        if not session_ids:
            return []
        values = self._client.control("HMGET", self._keys.usage(tenant), *session_ids)
        return [None if value is None else int(value) for value in values]

    def sum_up(self, tenant: str) -> None:
        """Make the sum that of the entries, whatever it was."""
        self._client.run_script(SUM_UP, [self._keys.usage(tenant)], [])

    def usage(self, tenant: str) -> TenantUsage:
        name = self._keys.usage(tenant)
        num_fields, total = self._client.control_many([("HLEN", name), ("HGET", name, TOTAL_FIELD)])
        return TenantUsage(0, 0) if total is None else TenantUsage(num_fields - 1, int(total))

    def _names(self, tenant: str) -> list[bytes]:
        return [self._keys.index(tenant), self._keys.usage(tenant)]
