"""When sessions with a `ttl_seconds` end, in the stores that only one process can have open.

Deadlines are monotonic and live in the process: a jump of the wall clock ends nothing early. After a restart every
session starts with its full time again.
"""

import threading
import time

from engine.stores.base import SessionKey


class Deadlines:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: dict[SessionKey, float] = {}

    def renew(self, key: SessionKey, ttl_seconds: int | None) -> None:
        with self._lock:
            if ttl_seconds is None:
                self._deadlines.pop(key, None)
            else:
                self._deadlines[key] = time.monotonic() + ttl_seconds

    def forget(self, key: SessionKey) -> None:
        self.renew(key, None)

    def has_passed(self, key: SessionKey) -> bool:
        with self._lock:
            return self._deadlines.get(key, float("inf")) <= time.monotonic()

    def passed(self) -> list[SessionKey]:
        """All sessions whose time is over."""
        now = time.monotonic()
        with self._lock:
            return [key for key, deadline in self._deadlines.items() if deadline <= now]
