"""Processor time of another process, thread by thread, as the kernel counts it. Linux only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class ProcessTimes:
    """main_seconds: of the thread that the process began with, which in our server runs the event loop: all of HTTP.
    other_seconds: of all the others that live: the engine's, torch's, and those that commit sessions."""

    main_seconds: float
    other_seconds: float

    @classmethod
    def of(cls, pid: int) -> Self:
        """Raises SystemExit where the kernel does not tell."""
        tasks = Path(f"/proc/{pid}/task")
        if not tasks.is_dir():
            raise SystemExit(f"bench: {tasks} does not exist: processor time by thread needs Linux")
        seconds = {int(task.name): _nanoseconds(task) / 1e9 for task in tasks.iterdir()}
        return cls(seconds.pop(pid), sum(seconds.values()))

    def __sub__(self, earlier: Self) -> ProcessTimes:
        return ProcessTimes(self.main_seconds - earlier.main_seconds, self.other_seconds - earlier.other_seconds)


def _nanoseconds(task: Path) -> int:
    """On a processor, by the scheduler's own count; a thread that has just ended has none."""
    try:
        return int((task / "schedstat").read_text(encoding="ascii").split()[0])
    except FileNotFoundError:
        return 0
