"""One process per directory: a lock that the kernel holds, and gives back when the process ends however it ends."""

import fcntl
import os
from pathlib import Path

from engine.errors import StoreMisconfigured


def lock_file(path: Path) -> int:
    """A descriptor that holds the lock until it is closed. Raises `StoreMisconfigured`, naming the holder."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreMisconfigured(
            f"{path.parent} is in use by another server (process {holder or 'unknown'})"
        ) from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
