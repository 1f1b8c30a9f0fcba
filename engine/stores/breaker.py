"""A circuit breaker: when a server has not answered several times in a row, calls fail at once for a moment.

It keeps the threads of a store free for sessions that can be served, and tells clients when to come back. Only outages
that are waited for count: a refusal is an answer, and a connection that is refused at once holds up nobody.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from engine.errors import StoreUnavailable

MAX_NUM_OUTAGES = 5
SLOW_SECONDS = 0.5
OPEN_SECONDS = 1.0


class CircuitBreaker:
    """outage: the exception that counts, when it took SLOW_SECONDS.   clock: seconds that never go back.

    Safe to call from several threads.
    """

    def __init__(self, outage: type[Exception], clock: Callable[[], float] = time.monotonic) -> None:
        self._outage = outage
        self._clock = clock
        self._lock = threading.Lock()
        self._num_outages = 0
        self._opened: float | None = None
        self._is_probing = False

    @contextmanager
    def call(self) -> Iterator[None]:
        """One call. Raises `StoreUnavailable` while the circuit is open; when it has been open for OPEN_SECONDS, one
        call at a time is let through, and the first that is answered closes it."""
        is_probe = self._admit()
        began = self._clock()
        is_outage = False
        try:
            yield
        except self._outage:
            is_outage = self._clock() - began >= SLOW_SECONDS
            raise
        finally:
            if is_outage:
                self._failed(is_probe)
            else:
                self._answered(is_probe)

    def _admit(self) -> bool:
        with self._lock:
            if self._opened is None:
                return False
            seconds_left = self._opened + OPEN_SECONDS - self._clock()
            if seconds_left > 0 or self._is_probing:
                raise StoreUnavailable(
                    "the session store has not answered for a while", retry_after=max(seconds_left, OPEN_SECONDS / 2)
                )
            self._is_probing = True
            return True

    def _failed(self, is_probe: bool) -> None:
        with self._lock:
            self._num_outages += 1
            if is_probe or (self._opened is None and self._num_outages >= MAX_NUM_OUTAGES):
                self._opened = self._clock()
            if is_probe:
                self._is_probing = False

    def _answered(self, is_probe: bool) -> None:
        with self._lock:
            self._num_outages = 0
            self._opened = None
            if is_probe:
                self._is_probing = False
