"""Blob files: whole or absent, never in between.

A blob is written to a temporary file of the same directory (mode 0600), fsynced, renamed, and the directory fsynced.
Names are generation ids, so that nothing a client chooses becomes a path.
"""

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from engine.errors import StateCorrupt
from engine.failpoints import failpoint
from engine.snapshots.buffers import aligned_buffer
from engine.stores.base import Buffer

_TEMPORARY_SUFFIX = ".tmp"


def make_directory(path: Path) -> None:
    """Make a directory (mode 0700) and its missing parents, durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    sync_directory(path.parent)


class BlobDirectory:
    """Errors are `OSError`s; the store gives them their names."""

    def __init__(self, path: Path) -> None:
        make_directory(path)
        self._path = path

    def write(self, name: str, buffers: Iterable[Buffer]) -> None:
        """After an error nothing is left."""
        temporary = self._path / f"{name}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                for buffer in buffers:
                    _write_all(descriptor, buffer)
                    failpoint("commit.part")
                failpoint("commit.before_sync")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            failpoint("commit.before_rename")
            os.rename(temporary, self._path / name)
            failpoint("commit.before_directory_sync")
            sync_directory(self._path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
                self.remove(name)
            raise

    def read(self, name: str, offset: int, num_bytes: int, blob_num_bytes: int) -> memoryview | None:
        """`num_bytes` from `offset`, in writable, aligned memory of the caller's own; None when there is no blob.

        Raises `StateCorrupt` when the blob is not `blob_num_bytes` long.
        """
        try:
            descriptor = os.open(self._path / name, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            if os.fstat(descriptor).st_size != blob_num_bytes:
                raise StateCorrupt("a stored snapshot was cut or grew")
            buffer = aligned_buffer(num_bytes)
            num_read = 0
            while num_read < num_bytes:
                step = os.preadv(descriptor, [buffer[num_read:]], offset + num_read)
                if step == 0:
                    raise StateCorrupt("a stored snapshot was cut")
                num_read += step
            return buffer
        finally:
            os.close(descriptor)

    def has(self, name: str) -> bool:
        return (self._path / name).exists()

    def changed(self, name: str) -> float:
        """When the blob was last written, renamed or linked, seconds since the epoch."""
        return (self._path / name).stat().st_ctime

    def remove(self, name: str) -> None:
        (self._path / name).unlink(missing_ok=True)

    def link_into(self, other: "BlobDirectory", name: str) -> None:
        """Keep a blob's bytes in another directory too, whatever happens to them here."""
        with suppress(FileExistsError, FileNotFoundError):
            os.link(self._path / name, other._path / name)
            sync_directory(other._path)

    def names(self) -> list[str]:
        """Everything in the directory, temporary files included."""
        return os.listdir(self._path)


def _write_all(descriptor: int, buffer: Buffer) -> None:
    view = memoryview(buffer).cast("B")
    while view.nbytes:
        view = view[os.write(descriptor, view) :]


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
