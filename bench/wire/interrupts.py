"""Where the main thread spends its processor time, by interrupting it: a thread that looked on would be let in where
the interpreter's lock is given away, and so would see little but system calls.

A timer's signal comes at random intervals. Python handles it in the main thread when the call of C code that it met has
returned, or else a few bytecodes later, so time in C code counts for the function that called it. Each look stands for
the processor time since the one before: one that had to wait for a long call counts for more, sleep for nothing.
"""

from __future__ import annotations

import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from bench.stack_samples import Frame

_MEAN_INTERVAL_SECONDS = 1e-3


class Interrupts:
    """Looks at the main thread's stack from `start` to `stop`; both are called in the main thread."""

    def __init__(self, name_of: Callable[[Sequence[Frame]], str]) -> None:
        self._name_of = name_of
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = 0.0
        self._is_looking = False
        self._draw = random.Random(0).expovariate
        self._handler_before: Any = signal.SIG_DFL

    def start(self) -> None:
        self._handler_before = signal.signal(signal.SIGALRM, self._look)
        self._last = time.thread_time()
        self._is_looking = True
        self._arm()

    def stop(self) -> dict[str, float]:
        """The processor seconds of each name."""
        # A look that is under way must not set the timer again: it would find nobody to handle it.
        self._is_looking = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler_before)
        return dict(self._seconds)

    def _arm(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, self._draw(1 / _MEAN_INTERVAL_SECONDS))

    def _look(self, signal_number: int, frame: FrameType | None) -> None:
        if not self._is_looking:
            return
        stack = []
        while frame is not None:
            stack.append((frame.f_code.co_filename, frame.f_code.co_qualname))
            frame = frame.f_back
        now = time.thread_time()
        self._seconds[self._name_of(stack)] += now - self._last
        self._last = now
        self._arm()
