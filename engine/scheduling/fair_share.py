"""Who has been served least: start-time fair queueing (Goyal, Vin and Cheng 1996), in tokens or in slots.

Promises: of those who want to be served all the time, none gets ahead of another by more than one turn; who comes back
after a pause begins where the others stand, neither with credit for it nor with what it used while nobody else wanted
anything. Pure.
"""

from collections.abc import Iterable


class FairShare:
    """Between tenants. Serve the one whose `start` is the least."""

    def __init__(self) -> None:
        # Where the one stood who was behind all others when somebody was last served.
        self._now = 0
        # What each tenant has had, as far as it is ahead of `_now`.
        self._served: dict[str, int] = {}

    def start(self, tenant: str) -> int:
        """Where a turn of this tenant would begin."""
        return max(self._now, self._served.get(tenant, 0))

    def serve(self, served: Iterable[tuple[str, int]], wanting: Iterable[str]) -> None:
        """Counts what tenants got; `wanting` are all who wanted some, they among them."""
        self._now = min(self.start(tenant) for tenant in wanting)
        for tenant, amount in served:
            self._served[tenant] = self.start(tenant) + amount
        self._served = {tenant: amount for tenant, amount in self._served.items() if amount > self._now}
