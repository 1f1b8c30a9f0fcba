"""Where the main thread spends its time, by interrupting it: a thread that looked on would be let in where the
interpreter's lock is given away, and so would see little but system calls.

A timer's signal comes at random intervals. Python handles it in the main thread when the call of C code that it met has
returned, or else a few bytecodes later, so time in C code counts for the function that called it.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from types import FrameType

from bench.stack_samples import Frame

_MEAN_INTERVAL_SECONDS = 1e-3


class Interrupts:
    """Looks at the main thread's stack from `start` to `stop`; both are called in the main thread."""

    def __init__(self, name_of: Callable[[Sequence[Frame]], str]) -> None:
        self._name_of = name_of
        self._counts: Counter[str] = Counter()
        self._draw = random.Random(0).expovariate

    def start(self) -> None:
        signal.signal(signal.SIGALRM, self._look)
        self._arm()

    def stop(self) -> Counter[str]:
        """How often each name was met."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        return self._counts

    def _arm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._draw(1 / _MEAN_INTERVAL_SECONDS))

    def _look(self, signal_number: int, frame: FrameType | None) -> None:
        stack = []
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        self._counts[self._name_of(stack)] += 1
        self._arm()
