"""Token log files: bytes that only grow. Names are ids of ours, so that nothing a client chooses becomes a path.

How much of a file counts is said by the head that names it; what lies behind that was never committed, and is written
over by the next commit.
"""

import os
from pathlib import Path

from engine.errors import LogLost
from engine.failpoints import failpoint
from engine.stores.blobs import make_directory, sync_directory
from engine.stores.head import Buffer


class LogDirectory:
    """Errors are `OSError`s; the store gives them their names."""

    def __init__(self, path: Path) -> None:
        make_directory(path)
        self._path = path

    def write(self, name: str, offset: int, data: Buffer) -> None:
        """Durable when it returns; offset 0 makes the file. Raises `LogLost` when it does not reach to `offset`."""
        if offset and not data:
            return
        is_new = offset == 0
        try:
            descriptor = os.open(self._path / name, os.O_WRONLY | (os.O_CREAT if is_new else 0), 0o600)
        except FileNotFoundError as error:
            raise LogLost("the session's token log is gone") from error
        try:
            if os.fstat(descriptor).st_size < offset:
                raise LogLost("the session's token log was cut")
            failpoint("commit.before_log")
            view = memoryview(data).cast("B")
            while view.nbytes:
                num_written = os.pwrite(descriptor, view, offset)
                view, offset = view[num_written:], offset + num_written
            failpoint("commit.before_log_sync")
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_directory(self._path)

    def read(self, name: str, num_bytes: int) -> bytes:
        """The first `num_bytes`. Raises `LogLost`."""
        try:
            with (self._path / name).open("rb") as file:
                data = file.read(num_bytes)
        except FileNotFoundError as error:
            raise LogLost("the session's token log is gone") from error
        if len(data) < num_bytes:
            raise LogLost("the session's token log was cut")
        return data

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return os.listdir(self._path)
