"""When sessions with a `ttl_seconds` end, in the stores that only one process can have open.

Idle time is monotonic and counted in the process: a jump of the wall clock ends nothing early. After a restart every
session has its full time again.
"""

import threading
import time

from engine.stores.base import Head, SessionKey

SWEEP_SECONDS = 60.0


class IdleTimes:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._last_used: dict[SessionKey, float] = {}
        self._next_sweep = self._started + SWEEP_SECONDS

    def touch(self, key: SessionKey, head: Head) -> None:
        """The session was committed or used just now."""
        if head.ttl_seconds is not None:
            with self._lock:
                self._last_used[key] = time.monotonic()

    def forget(self, key: SessionKey) -> None:
        with self._lock:
            self._last_used.pop(key, None)

    def has_ended(self, key: SessionKey, head: Head) -> bool:
        if head.ttl_seconds is None:
            return False
        with self._lock:
            return time.monotonic() - self._last_used.get(key, self._started) >= head.ttl_seconds

    def sweep_is_due(self) -> bool:
        """True once per SWEEP_SECONDS: time to look for sessions that ended without anyone asking for them."""
        with self._lock:
            if time.monotonic() < self._next_sweep:
                return False
            self._next_sweep = time.monotonic() + SWEEP_SECONDS
            return True
