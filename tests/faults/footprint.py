"""What a process takes of the machine."""

import re
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Footprint:
    """At one moment: bytes resident, and files and sockets that are open."""

    num_bytes: int
    num_open: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        return cls(_status_num_bytes(pid, "VmRSS"), len(list(Path(f"/proc/{pid}/fd").iterdir())))


def peak_num_bytes(pid: int) -> int:
    """The most bytes that were ever resident."""
    return _status_num_bytes(pid, "VmHWM")


def watched(pid: int, seconds: float, every_seconds: float = 0.25) -> list[Footprint]:
    """The footprints of a process for so long."""
    footprints = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        footprints.append(Footprint.of(pid))
        time.sleep(every_seconds)
    return footprints


def _status_num_bytes(pid: int, name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return 1024 * int(match[1])
