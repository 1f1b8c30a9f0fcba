"""What the operating system and SQLite say, in the words of `engine.errors`."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from engine.errors import StoreFull, StoreUnavailable

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_NO_ROOM_SQLITE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}


@contextmanager
def reading() -> Iterator[None]:
    """Every failure means `StoreUnavailable`."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"the local store cannot be read: {error.strerror}") from error
    except sqlite3.Error as error:
        raise StoreUnavailable(f"the local store's index cannot be read: {error}") from error


@contextmanager
def writing() -> Iterator[None]:
    """A disk that is full, read-only or broken means `StoreFull`, anything else `StoreUnavailable`."""
    try:
        yield
    except OSError as error:
        message = f"the local store cannot be written: {error.strerror}"
        raise (StoreFull(message) if error.errno in _NO_ROOM else StoreUnavailable(message)) from error
    except sqlite3.Error as error:
        message = f"the local store's index cannot be written: {error}"
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        raise (StoreFull(message) if code in _NO_ROOM_SQLITE else StoreUnavailable(message)) from error
