"""The client that waits: one method per thing a session can do. `async_client` has the same methods, awaited.

    with Client("http://127.0.0.1:8000") as client:
        client.ingest("book", open("book.txt", "rb"))
        print(client.chat("Who is Mr Darcy?", session_id="book").text)

Promises: every failure is a `ClientError` (errors.py); a turn is sent once, never repeated behind the caller's back; an
ingest goes on where the server's last commit ended when the connection breaks. Methods may be called from many threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import BinaryIO, Self, TypeVar, Unpack

import httpx

from clients import protocol, replay, versions
from clients.errors import ApiError, ConnectionFailedError
from clients.messages import (
    ChatAnswer,
    ChatDelta,
    IngestProgress,
    IngestResult,
    SessionCommit,
    SessionInfo,
    SessionMemory,
    SessionPage,
)
from clients.protocol import Call, ChatOptions, Messages, Request
from clients.replay import OnReplayProgress, ReplayResult
from clients.upload import PIECE_NUM_BYTES, Upload
from clients.versions import CreateOptions, ExportedSession, ForkOptions, RewindOptions, SessionVersion

T = TypeVar("T")
OnProgress = Callable[[IngestProgress], None]


class Client:
    """`timeout_seconds` bounds the silence of the server, not the length of an answer."""

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        *,
        timeout_seconds: float = 600.0,
        connect_timeout_seconds: float = 5.0,
    ) -> None:
        self.base_url, headers = protocol.connection_settings(base_url, api_key)
        timeout = httpx.Timeout(timeout_seconds, connect=connect_timeout_seconds)
        limits = httpx.Limits(max_connections=None)
        try:
            self._http = httpx.Client(base_url=self.base_url, headers=headers, timeout=timeout, limits=limits)
        except httpx.InvalidURL as error:
            raise ConnectionFailedError(f"{self.base_url}: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def chat(self, messages: Messages | str, **options: Unpack[ChatOptions]) -> ChatAnswer:
        """One turn, answered whole. A string is the user's only message."""
        return self._call(protocol.chat(messages, options))

    def stream_chat(self, messages: Messages | str, **options: Unpack[ChatOptions]) -> Generator[ChatDelta, None, None]:
        """One turn, answered as it is made. Closing the generator before its end undoes the turn."""
        is_whole = False
        with self._events(protocol.chat_request(messages, options, stream=True)) as events:
            for data in events:
                if data != protocol.DONE:
                    yield protocol.parse_chat_event(data)
                is_whole = data == protocol.DONE
        if not is_whole:
            raise ConnectionFailedError("the answer was cut before its end")

    def create_session(
        self,
        session_id: str | None = None,
        metadata: Mapping[str, str] | None = None,
        **options: Unpack[CreateOptions],
    ) -> SessionInfo:
        """A session that has read nothing, or that begins where a version of `from_session` stands."""
        return self._call(versions.create_session(session_id, metadata, options))

    def get_session(self, session_id: str) -> SessionInfo:
        return self._call(protocol.get_session(session_id))

    def get_memory(self, session_id: str) -> SessionMemory:
        """Each head of each layer as it is now, and samples of the layers over the session."""
        return self._call(protocol.get_memory(session_id))

    def list_sessions(self, limit: int = 100, after: str | None = None) -> SessionPage:
        return self._call(protocol.list_sessions(limit, after))

    def delete_session(self, session_id: str) -> None:
        self._call(protocol.delete_session(session_id))

    def fork_session(self, session_id: str, new_id: str | None = None, **options: Unpack[ForkOptions]) -> SessionInfo:
        """A new session that has learned what this one had at a version, and shares nothing with it."""
        return self._call(versions.fork_session(session_id, new_id, options))

    def rewind_session(self, session_id: str, version: int | str, **options: Unpack[RewindOptions]) -> SessionCommit:
        """Make a kept version the committed one again, as a new version."""
        return self._call(versions.rewind_session(session_id, version, options))

    def list_versions(self, session_id: str) -> tuple[SessionVersion, ...]:
        """The versions that are kept, newest first."""
        return self._call(versions.list_versions(session_id))

    def name_version(self, session_id: str, name: str, version: int | str | None = None) -> tuple[SessionVersion, ...]:
        """Keep a version for as long as it has this name; the versions that are kept."""
        return self._call(versions.name_version(session_id, name, version))

    def unname_version(self, session_id: str, name: str) -> tuple[SessionVersion, ...]:
        """Take a name away; the versions that are kept."""
        return self._call(versions.unname_version(session_id, name))

    def export_session(self, session_id: str, file: BinaryIO, version: int | str | None = None) -> ExportedSession:
        """Write a version's snapshot to `file`, piece by piece; what was written before a failure is no snapshot."""
        with self._response(versions.export_request(session_id, version)) as response:
            download = versions.Download(session_id, response.headers)
            for piece in response.iter_bytes(versions.PIECE_NUM_BYTES):
                file.write(download.add(piece))
        return download.finish()

    def import_session(
        self,
        file: BinaryIO,
        session_id: str | None = None,
        ttl_seconds: int | None = None,
        idempotency_key: str | None = None,
    ) -> SessionInfo:
        """A new session from what `export_session` wrote, from where `file` stands to its end."""
        call = versions.import_session(session_id, ttl_seconds, idempotency_key)
        return self._call(call, iter(partial(file.read, versions.PIECE_NUM_BYTES), b""))

    def replay_session(self, session_id: str, on_progress: OnReplayProgress | None = None) -> ReplayResult:
        """Make the session's memory anew from its token log, as its next version; until then it stays as it is."""
        result: ReplayResult | None = None
        with self._events(replay.replay_request(session_id)) as events:
            for data in events:
                message = None if data == protocol.DONE else replay.parse_event(data)
                if isinstance(message, ReplayResult):
                    result = message
                elif message is not None and on_progress is not None:
                    on_progress(message)
        if result is None:
            raise ConnectionFailedError("the connection ended before the replay did")
        return result

    def tokenize(self, text: str) -> list[int]:
        return self._call(protocol.tokenize(text))

    def list_models(self) -> list[str]:
        return self._call(protocol.list_models())

    def ingest(
        self,
        session_id: str,
        document: BinaryIO,
        *,
        document_id: str | None = None,
        on_progress: OnProgress | None = None,
        patience_seconds: float = 60.0,
    ) -> IngestResult:
        """Let the session read a document (UTF-8, seekable) to its end.

        A document that was begun before, under the same id, is continued; the id is a digest of the content by default.
        Gives up when nothing was committed for `patience_seconds`; what was committed until then is kept.
        """
        upload = Upload(session_id, document, document_id, patience_seconds)
        while True:
            try:
                upload.begin(self._find_session(session_id))
                return self._upload(upload, on_progress or ignore_progress)
            except (ApiError, ConnectionFailedError) as error:
                time.sleep(upload.seconds_before_retry(error))

    def _upload(self, upload: Upload, on_progress: OnProgress) -> IngestResult:
        result: IngestResult | None = None
        with self._events(upload.request(), self._pieces(upload, on_progress)) as events:
            for data in events:
                if data == protocol.DONE:
                    continue
                message = upload.read_event(data)
                if isinstance(message, IngestResult):
                    result = message
                else:
                    on_progress(message)
        if result is None:
            raise ConnectionFailedError("the connection ended before the document did")
        return result

    def _pieces(self, upload: Upload, on_progress: OnProgress) -> Iterator[bytes]:
        """The body. Events are read only when all of it is sent, so progress until then is asked for."""
        while piece := upload.document.read(PIECE_NUM_BYTES):
            yield piece
            if upload.wants_progress():
                info = self._find_session(upload.session_id)
                if info is not None:
                    on_progress(upload.read_session(info))

    def _find_session(self, session_id: str) -> SessionInfo | None:
        try:
            return self.get_session(session_id)
        except ApiError as error:
            if error.code == "session_not_found":
                return None
            raise

    def _call(self, call: Call[T], content: Iterator[bytes] | None = None) -> T:
        with self._response(call.request, content) as response:
            return call.parse(protocol.parse_json(response.read()))

    @contextmanager
    def _events(self, request: Request, content: Iterator[bytes] | None = None) -> Iterator[Iterator[str]]:
        with self._response(request, content) as response:
            parser = protocol.EventParser()
            yield (data for piece in response.iter_bytes() for data in parser.push(piece))

    @contextmanager
    def _response(self, request: Request, content: Iterator[bytes] | None = None) -> Iterator[httpx.Response]:
        try:
            with self._http.stream(
                request.method,
                request.path,
                params=request.params,
                headers=request.headers,
                json=request.json,
                content=content,
            ) as response:
                if response.is_error:
                    raise protocol.parse_refusal(
                        response.status_code, response.read(), response.headers.get("retry-after")
                    )
                yield response
        except httpx.TransportError as error:
            raise ConnectionFailedError(f"{self.base_url}: {error or type(error).__name__}") from error


def ignore_progress(progress: IngestProgress) -> None:
    """For callers who do not want to hear about progress."""
