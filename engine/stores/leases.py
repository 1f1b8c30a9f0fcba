"""Leases inside one process, for the stores that only one process can have open.

A killed process takes its leases with it. Time is monotonic: a jump of the wall clock neither ends nor prolongs one.
"""

import threading
import time

from engine.stores.base import SessionKey


class ProcessLeases:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders: dict[SessionKey, tuple[str, float]] = {}

    def acquire(self, key: SessionKey, owner: str, seconds: float) -> bool:
        now = time.monotonic()
        with self._lock:
            holder = self._holders.get(key)
            if holder is not None and holder[0] != owner and holder[1] > now:
                return False
            self._holders[key] = (owner, now + seconds)
            return True

    def release(self, key: SessionKey, owner: str) -> None:
        with self._lock:
            holder = self._holders.get(key)
            if holder is not None and holder[0] == owner:
                del self._holders[key]
