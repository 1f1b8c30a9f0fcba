"""The one account of the states that are on their way, in bytes of the host's memory.

A state is large (a megabyte for the shipped model, half a gigabyte for the largest preset), and a request that waits
with one costs as much as one that runs. So whoever is going to have states in memory holds room for all of them before
the first is loaded, and until the last is gone: what a turn starts from, what it leaves until that is committed and
dropped, what several answers to one prompt share, the copy that a codec rounds, what a document goes on from between
two commits, a snapshot that is uploaded or downloaded. How many that are is said where each begins (`sessions`).

Not counted, because bounded elsewhere: the slots and the copies that a held stop string needs (at most three rows for
each sequence that runs, on the device), the copies of sessions that rest (`host_copies`, which also counts what is held
here once more when a turn starts from it), and what the store's threads have in hand beside: a part on its way, coded
bytes, a load whose waiter has left, at most about a state for each thread.

First come, first served, for what waits behind a large one must not overtake it for ever. Two exceptions: whoever wants
more than there is gets it alone; and transfers, which last as long as a client's network pleases (documents, exports,
imports), never get more than half, and are overtaken by turns while they wait for that half. That half tenants share:
what is free of it goes to the one that holds the least of it, among those to the one that was given the least. Turns
and transfers have a line each to fill. Used from the event loop alone.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from engine.errors import QueueFull
from engine.scheduling.fair_share import FairShare


@dataclass(frozen=True, slots=True, eq=False)
class _Waiter:
    """transfer_of: the tenant; None is a turn."""

    num_bytes: int
    transfer_of: str | None
    admitted: asyncio.Future[None]


class StateBudget:
    """At most `max_num_bytes` are held, and at most `max_num_waiting` turns, and as many transfers, wait for some.

    state_num_bytes: of one state, whatever it has read.
    """

    def __init__(self, state_num_bytes: int, max_num_bytes: int, max_num_waiting: int) -> None:
        self._state_num_bytes = state_num_bytes
        self.max_num_bytes = max_num_bytes
        self.num_bytes = 0
        # By tenant; of those who have any.
        self._transfer_bytes: Counter[str] = Counter()
        self._shares = FairShare()
        self._max_num_waiting = max_num_waiting
        self._waiting: deque[_Waiter] = deque()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def hold(self, num_states: int, *, transfer_of: str | None = None) -> AsyncIterator[None]:
        """Room for so many states, for a transfer of this tenant or else for a turn, waited for if need be. Raises
        QueueFull when too many wait already.

        All at once: whoever held some and waited for more could wait for others who do the same.
        """
        if num_states == 0:
            yield
            return
        num_bytes = num_states * self._state_num_bytes
        waiter = _Waiter(num_bytes, transfer_of, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._admit()
        num_alike = sum((each.transfer_of is None) == (transfer_of is None) for each in self._waiting)
        if not waiter.admitted.done() and num_alike > self._max_num_waiting:
            self._waiting.remove(waiter)
            raise QueueFull("too many requests wait for the memory that sessions need")
        try:
            await waiter.admitted
            yield
        finally:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                self._account(waiter, -num_bytes)
            else:
                self._waiting.remove(waiter)
            self._admit()

    def _admit(self) -> None:
        """Lets in those for whom there is room."""
        while (waiter := self._next()) is not None and _fits(waiter, self.num_bytes, self.max_num_bytes):
            if waiter.transfer_of is not None:
                wanting = {each.transfer_of for each in self._waiting if each.transfer_of is not None}
                self._shares.serve([(waiter.transfer_of, waiter.num_bytes)], wanting)
            self._waiting.remove(waiter)
            self._account(waiter, waiter.num_bytes)
            waiter.admitted.set_result(None)

    def _next(self) -> _Waiter | None:
        """The oldest, among turns alone while the transfers' half has no room; in a transfer's place the one of the
        tenant whose turn it is."""
        waiting = [each for each in self._waiting if not each.admitted.cancelled()]
        transfers = {each: each.transfer_of for each in waiting if each.transfer_of is not None}
        share = {tenant: (self._transfer_bytes[tenant], self._shares.start(tenant)) for tenant in transfers.values()}
        transfer = min(transfers, key=lambda each: share[transfers[each]], default=None)
        if transfer is not None and not _fits(transfer, self._transfer_bytes.total(), self.max_num_bytes // 2):
            waiting = [each for each in waiting if each.transfer_of is None]
        oldest = next(iter(waiting), None)
        return oldest if oldest is None or oldest.transfer_of is None else transfer

    def _account(self, waiter: _Waiter, num_bytes: int) -> None:
        self.num_bytes += num_bytes
        if waiter.transfer_of is not None:
            self._transfer_bytes[waiter.transfer_of] += num_bytes
            if not self._transfer_bytes[waiter.transfer_of]:
                del self._transfer_bytes[waiter.transfer_of]


def _fits(waiter: _Waiter, num_bytes: int, max_num_bytes: int) -> bool:
    """Whoever wants more than there is fits where nobody else is."""
    return num_bytes == 0 or num_bytes + waiter.num_bytes <= max_num_bytes
