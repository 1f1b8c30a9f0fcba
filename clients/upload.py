"""One document on its way into a session: where it stands, what to send next, and whether to try again.

Promises: bytes that the server has committed are not sent again; a document that is finished is not read twice, because
its id is a digest of its content. Leaves sending, sleeping and reading the file in the right order to the clients.
"""

from __future__ import annotations

import hashlib
import time
from typing import BinaryIO

from clients import protocol
from clients.errors import ApiError, ClientError, ConnectionFailedError
from clients.messages import (
    IngestProgress,
    IngestResult,
    SessionCommit,
    SessionInfo,
    as_object,
    required,
)
from clients.protocol import Request

PIECE_NUM_BYTES = 16 * 1024
PROGRESS_SECONDS = 1.0
FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 5.0

# Refusals that say: the same request may work in a moment.
PASSING_CODES = frozenset(
    {
        "session_busy",
        "ingest_offset",
        "queue_full",
        "rate_limited",
        "loading",
        "draining",
        "store_unavailable",
        "engine_dead",
    }
)


def digest_of(document: BinaryIO) -> str:
    """A name for the content from the file's position to its end; the position is left where it was."""
    start = document.tell()
    digest = hashlib.blake2b(digest_size=16)
    while piece := document.read(1024 * 1024):
        digest.update(piece)
    document.seek(start)
    return digest.hexdigest()


class Upload:
    """The state of one ingest over as many connections as it takes. `document` must be seekable."""

    def __init__(
        self, session_id: str, document: BinaryIO, document_id: str | None = None, patience_seconds: float = 60.0
    ) -> None:
        self.session_id = session_id
        self.document = document
        self.document_id = document_id if document_id is not None else digest_of(document)
        self.offset = 0
        self._start = document.tell()
        self._num_total_bytes = document.seek(0, 2) - self._start
        self._patience_seconds = patience_seconds
        self._delay_seconds = FIRST_DELAY_SECONDS
        self._began = self._last_advance = self._last_progress = time.monotonic()
        self._num_committed_bytes = 0
        self._first_position: int | None = None

    def begin(self, info: SessionInfo | None) -> None:
        """Take up the document where the session's last commit ended; None is a session that does not exist yet."""
        self.offset = 0
        if info is not None and info.open_ingest is not None and info.open_ingest.document_id == self.document_id:
            self.offset = min(info.open_ingest.offset, self._num_total_bytes)
        self._advance(self.offset)
        if self._first_position is None:
            self._first_position = 0 if info is None else info.position
        self.document.seek(self._start + self.offset)

    def request(self) -> Request:
        return protocol.ingest_request(self.session_id, self.document_id, self.offset)

    def wants_progress(self) -> bool:
        """Whether it is time to look at the session while the body is still being sent."""
        return time.monotonic() - self._last_progress >= PROGRESS_SECONDS

    def read_session(self, info: SessionInfo) -> IngestProgress:
        """Progress as the session's head shows it."""
        offset = self._num_committed_bytes if info.open_ingest is None else info.open_ingest.offset
        return self._progress(offset, info.position, info.version)

    def read_event(self, data: str) -> IngestProgress | IngestResult:
        """One event of the answer: progress, or the result. Raises ApiError, ProtocolError."""
        body = as_object(protocol.parse_event(data), "event")
        num_bytes = required(body, "bytes", int, "event")
        if body.get("done") is True:
            session = SessionCommit.parse(body.get("session"))
            seconds = time.monotonic() - self._began
            return IngestResult(self.document_id, num_bytes, required(body, "tokens", int, "event"), seconds, session)
        return self._progress(
            num_bytes, required(body, "position", int, "event"), required(body, "version", int, "event")
        )

    def seconds_before_retry(self, error: ClientError) -> float:
        """How long to wait before the next connection. Raises the error itself when another would not help."""
        is_passing = isinstance(error, ConnectionFailedError) or (
            isinstance(error, ApiError) and error.code in PASSING_CODES
        )
        delay_seconds = self._delay_seconds
        if isinstance(error, ApiError) and error.retry_after_seconds is not None:
            delay_seconds = max(delay_seconds, error.retry_after_seconds)
        silence_seconds = time.monotonic() - self._last_advance
        if not is_passing or silence_seconds + delay_seconds > self._patience_seconds:
            raise error
        self._delay_seconds = min(2 * self._delay_seconds, MAX_DELAY_SECONDS)
        return delay_seconds

    def _advance(self, num_committed_bytes: int) -> None:
        if num_committed_bytes > self._num_committed_bytes:
            self._num_committed_bytes = num_committed_bytes
            self._last_advance = time.monotonic()
            self._delay_seconds = FIRST_DELAY_SECONDS

    def _progress(self, num_committed_bytes: int, position: int, version: int) -> IngestProgress:
        self._advance(num_committed_bytes)
        self._last_progress = now = time.monotonic()
        num_tokens = position - (self._first_position or 0)
        seconds = max(now - self._began, 1e-9)
        return IngestProgress(
            self._num_committed_bytes, self._num_total_bytes, num_tokens, num_tokens / seconds, version
        )
