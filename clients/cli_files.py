"""The files of the `atlas` command: read from the start, written whole or not at all; `-` is a standard stream."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clients.cli_shared import refuse

PIECE_NUM_BYTES = 2**20


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """Standard input is spooled to a file first: what cannot be read again cannot be sent again."""
    if name == "-":
        with tempfile.TemporaryFile() as spooled:
            while piece := sys.stdin.buffer.read(PIECE_NUM_BYTES):
                spooled.write(piece)
            spooled.seek(0)
            yield spooled
        return
    with _failures_of(name), Path(name).open("rb") as file:
        yield file


@contextmanager
def writing(name: str) -> Iterator[BinaryIO]:
    """A file that takes its name, and the place of the one that had it, when nothing was raised; a terminal is none."""
    path = Path(name)
    if name == "-":
        if sys.stdout.isatty():
            refuse("standard output is a terminal: redirect it, or name a FILE")
        with _failures_of("standard output"):
            yield sys.stdout.buffer
            sys.stdout.buffer.flush()
    elif path.exists() and not path.is_file():
        # A device or a pipe is written to and not replaced.
        with _failures_of(name), path.open("wb") as file:
            yield file
    else:
        with _failures_of(name), _replacing(path.resolve()) as file:
            yield file


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    descriptor, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink()
        raise


@contextmanager
def _failures_of(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        refuse(f"{name}: {error.strerror}")
