"""Named places where a test may kill the process or fail an operation, so that every crash point is tried.

`ATLAS_FAILPOINTS="commit.before_flip=3:kill,commit.part=1:ENOSPC"` reads: at the third pass through
`commit.before_flip` the process gets SIGKILL; the first `commit.part` raises `OSError(ENOSPC)`. `error` stands for EIO;
after `hang` that thread never goes on.
The server arms them once at start; unless that happened, `failpoint` looks at an empty dictionary and returns.
"""

import errno
import os
import signal
import threading
from dataclasses import dataclass

_KILL = "kill"
_HANG = "hang"


@dataclass(slots=True)
class _Trap:
    passes_left: int
    action: str


_lock = threading.Lock()
_armed: dict[str, _Trap] = {}


def arm(spec: str) -> None:
    """Arm the failpoints of `spec`, and no others. Raises `ValueError` naming the entry that cannot be read."""
    traps = dict(_parse(entry.strip()) for entry in spec.split(",") if entry.strip())
    with _lock:
        _armed.clear()
        _armed.update(traps)


def disarm() -> None:
    arm("")


def failpoint(name: str) -> None:
    """Nothing, unless `name` is armed and this is the pass that it waits for."""
    if not _armed:
        return
    with _lock:
        trap = _armed.get(name)
        if trap is None:
            return
        trap.passes_left -= 1
        if trap.passes_left != 0:
            return
    if trap.action == _KILL:
        os.kill(os.getpid(), signal.SIGKILL)
    if trap.action == _HANG:
        threading.Event().wait()
    number = getattr(errno, trap.action)
    raise OSError(number, f"failpoint {name}: {os.strerror(number)}")


def _parse(entry: str) -> tuple[str, _Trap]:
    name, separator, rest = entry.partition("=")
    count, colon, action = rest.partition(":")
    if action == "error":
        action = "EIO"
    known = action in (_KILL, _HANG) or action in errno.errorcode.values()
    if not (name and separator and colon and known and count.isascii() and count.isdigit() and int(count) >= 1):
        raise ValueError(
            f"failpoint {entry!r}: expected NAME=N:ACTION, the action being kill, hang, error or an errno's name"
        )
    return name, _Trap(passes_left=int(count), action=action)
