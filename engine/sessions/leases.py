"""One writer at a time for each session: a line of two in this process, and a lease in the store against the others.

The lease only saves wasted work; the fence is the store's head. Whoever waits for another process' lease (perhaps one
that was killed) waits as long as a lease lives, and a little more.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from engine.errors import SessionBusy, StoreFull, StoreUnavailable
from engine.sessions.shielding import finish_even_if_cancelled
from engine.sessions.storage import Storage
from engine.stores.base import SessionKey

MAX_NUM_WAITING = 1
POLL_SECONDS = 0.1


@dataclass(slots=True)
class _Line:
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    num_users: int = 0


class Leases:
    def __init__(self, storage: Storage, lease_seconds: float) -> None:
        self._storage = storage
        self._lease_seconds = lease_seconds
        self._lines: dict[SessionKey, _Line] = {}

    @asynccontextmanager
    async def hold(self, key: SessionKey, *, makes_room: bool = False) -> AsyncIterator[None]:
        """The right to write `key`. Raises SessionBusy when one writes and another waits already.

        makes_room: a store too full for a lease is gone to without one, for that is how it becomes less full.
        """
        line = self._lines.setdefault(key, _Line())
        if line.num_users > MAX_NUM_WAITING:
            raise SessionBusy("another turn of this session is running and one more is waiting")
        line.num_users += 1
        try:
            async with line.lock, self._store_lease(key, makes_room):
                yield
        finally:
            line.num_users -= 1
            if line.num_users == 0:
                del self._lines[key]

    @asynccontextmanager
    async def _store_lease(self, key: SessionKey, makes_room: bool) -> AsyncIterator[None]:
        owner = secrets.token_hex(16)
        try:
            await self._acquire(key, owner)
        except StoreFull:
            if not makes_room:
                raise
        renewal = asyncio.create_task(self._renew(key, owner))
        try:
            yield
        finally:
            renewal.cancel()
            await self._release(key, owner)

    async def _acquire(self, key: SessionKey, owner: str) -> None:
        deadline = time.monotonic() + self._lease_seconds + 10 * POLL_SECONDS
        try:
            while not await finish_even_if_cancelled(self._storage.acquire_lease(key, owner, self._lease_seconds)):
                if time.monotonic() > deadline:
                    raise SessionBusy("another server is writing this session")
                await asyncio.sleep(POLL_SECONDS)
        except asyncio.CancelledError:
            await self._release(key, owner)
            raise

    async def _release(self, key: SessionKey, owner: str) -> None:
        # A lease that cannot be given back runs out.
        with suppress(StoreUnavailable):
            await finish_even_if_cancelled(self._storage.release_lease(key, owner))

    async def _renew(self, key: SessionKey, owner: str) -> None:
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            with suppress(StoreFull, StoreUnavailable):
                await self._storage.acquire_lease(key, owner, self._lease_seconds)
