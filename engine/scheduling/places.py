"""Room for the sequences that run or wait, and who may have it: a queue that is full refuses, it does not grow.

Where there are several tenants, each may take more only while it has fewer than are left. So one alone fills half of
the room, two a third each, and somebody who has none finds some (dynamic thresholds: Choudhury and Hahne 1998).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import QueueFull


class Places:
    def __init__(self, num_places: int, *, is_multi_tenant: bool) -> None:
        self._num_places = num_places
        self._is_multi_tenant = is_multi_tenant
        # By tenant; of those who have any.
        self._held: Counter[str] = Counter()

    @property
    def num_held(self) -> int:
        return self._held.total()

    @contextmanager
    def hold(self, tenant: str, num_places: int) -> Iterator[None]:
        """Raises QueueFull."""
        num_left = self._num_places - self.num_held - num_places
        if num_left < 0:
            raise QueueFull("too many requests are waiting")
        num_own = self._held[tenant]
        if self._is_multi_tenant and num_own and num_own + num_places > num_left + 1:
            raise QueueFull("too many requests of yours are waiting")
        self._held[tenant] += num_places
        try:
            yield
        finally:
            self._held[tenant] -= num_places
            if not self._held[tenant]:
                del self._held[tenant]
