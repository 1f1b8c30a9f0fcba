"""Room for the sequences that run or wait, and who may have it: a queue that is full refuses, it does not grow.
A document that has begun is not refused any more, it waits for its next place.

Where there are several tenants, each may take more only while it has fewer than are left. So one alone fills half of
the room, two a third each, and somebody who has none finds some (dynamic thresholds: Choudhury and Hahne 1998).
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from engine.errors import QueueFull


class Places:
    def __init__(self, num_places: int, *, is_multi_tenant: bool) -> None:
        self._num_places = num_places
        self._is_multi_tenant = is_multi_tenant
        self._all_free = asyncio.Event()
        self._all_free.set()
        # By tenant; of those who have any.
        self._held: Counter[str] = Counter()
        # Who waits for one place, in the order in which they came.
        self._waiting: dict[asyncio.Future[None], str] = {}

    @property
    def num_held(self) -> int:
        return self._held.total()

    async def wait_until_all_free(self) -> None:
        await self._all_free.wait()

    @contextmanager
    def hold(self, tenant: str, num_places: int) -> Iterator[None]:
        """Raises QueueFull."""
        refusal = self._refusal(tenant, num_places)
        if refusal is not None:
            raise QueueFull(refusal)
        self._take(tenant, num_places)
        try:
            yield
        finally:
            self._give_back(tenant, num_places)

    @asynccontextmanager
    async def wait(self, tenant: str) -> AsyncIterator[None]:
        """One place, when there is one for this tenant. Raises what `dismiss` says."""
        if self._refusal(tenant, 1) is None:
            self._take(tenant, 1)
        else:
            granted = asyncio.get_running_loop().create_future()
            self._waiting[granted] = tenant
            try:
                await granted
            except asyncio.CancelledError:
                if granted.done() and not granted.cancelled() and granted.exception() is None:
                    self._give_back(tenant, 1)
                raise
            finally:
                self._waiting.pop(granted, None)
        try:
            yield
        finally:
            self._give_back(tenant, 1)

    def dismiss(self, error: Exception) -> None:
        """Whoever waits is told `error`."""
        for granted in self._waiting:
            if not granted.done():
                granted.set_exception(error)

    def _refusal(self, tenant: str, num_places: int) -> str | None:
        num_left = self._num_places - self.num_held - num_places
        if num_left < 0:
            return "too many requests are waiting"
        num_own = self._held[tenant]
        if self._is_multi_tenant and num_own and num_own + num_places > num_left + 1:
            return "too many requests of yours are waiting"
        return None

    def _take(self, tenant: str, num_places: int) -> None:
        self._held[tenant] += num_places
        self._all_free.clear()

    def _give_back(self, tenant: str, num_places: int) -> None:
        self._held[tenant] -= num_places
        if not self._held[tenant]:
            del self._held[tenant]
        for granted, waiting in self._waiting.items():
            if not granted.done() and self._refusal(waiting, 1) is None:
                self._take(waiting, 1)
                granted.set_result(None)
        if not self._held:
            self._all_free.set()
