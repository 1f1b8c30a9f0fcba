"""Where a thread spends its time, by looking at its stack from another thread: nothing in what it runs is changed.

torch gives the interpreter's lock away while it computes, so a look in the middle of an operation sees the call that
made it. Python's own time is seen at the next moment at which the interpreter hands the lock over, a few bytecodes
later. Looks come at random intervals, so that they cannot keep time with a loop, and each stands for the time since the
one before, so that one that had to wait for the lock counts for more. The standard error of a share p of n looks is
about sqrt(p (1 - p) / n).
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Self

_MEAN_INTERVAL_SECONDS = 2e-3
_SWITCH_SECONDS = 1e-5

Frame = tuple[str, str]
"""File, and qualified name of the function."""


class StackSamples:
    """Samples the stack of the thread that enters it, until it leaves."""

    def __init__(self) -> None:
        self.num_samples = 0
        self._seconds: defaultdict[tuple[CodeType, ...], float] = defaultdict(float)
        self._observed = threading.get_ident()
        self._is_over = threading.Event()
        self._observer = threading.Thread(target=self._observe, name="stack-samples", daemon=True)

    def __enter__(self) -> Self:
        self._observed = threading.get_ident()
        self._switch_seconds = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._observer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._is_over.set()
        self._observer.join()
        sys.setswitchinterval(self._switch_seconds)

    def shares(self, name_of: Callable[[Sequence[Frame]], str]) -> dict[str, float]:
        """The share of the time by what its stack, innermost frame first, is called; the largest first, together 1."""
        seconds: defaultdict[str, float] = defaultdict(float)
        for codes, each in self._seconds.items():
            seconds[name_of([(code.co_filename, code.co_qualname) for code in codes])] += each
        total = sum(seconds.values())
        return {name: seconds[name] / total for name in sorted(seconds, key=lambda name: -seconds[name])}

    def _observe(self) -> None:
        draw = random.Random(0).expovariate
        last = time.perf_counter()
        while not self._is_over.wait(draw(1 / _MEAN_INTERVAL_SECONDS)):
            codes = _codes(sys._current_frames().get(self._observed))
            now = time.perf_counter()
            self._seconds[codes] += now - last
            self.num_samples += 1
            last = now


def _codes(frame: FrameType | None) -> tuple[CodeType, ...]:
    codes = []
    while frame is not None:
        codes.append(frame.f_code)
        frame = frame.f_back
    return tuple(codes)


def place(frame: Frame, root: Path) -> str:
    """`engine/core.py EngineCore.step`: the file below the root, or below the packages' folder."""
    file, function = frame
    path = Path(file)
    if path.is_relative_to(root):
        return f"{path.relative_to(root).as_posix()} {function}"
    return f"{file.rpartition('site-packages/')[2]} {function}"


def is_within(stack: Sequence[Frame], folder: Path) -> bool:
    """Whether any frame of the stack is of a file below the folder."""
    prefix = f"{folder}/"
    return any(file.startswith(prefix) for file, _ in stack)
