"""HTTP as it comes over a connection: uvicorn's httptools, which is fast and keeps all that it is sent, with limits.

A request's head, and what may follow its body, are in memory before anybody sees the request, with a key or without.
Bodies have deadlines of their own (`bodies`), for whoever reads them knows how long they may be; what is here is the
time around them: until a request has begun, after its answer, and while a client takes nothing of what is sent.
"""

from __future__ import annotations

import asyncio
import http
import resource
import uuid
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from engine.errors import AtlasError, InvalidRequest
from server.errors import RequestTimeout, TooManyConnections, error_response

# As much as uvicorn takes with h11. Whatever comes in one piece with a request's beginning is not counted.
MAX_HEAD_NUM_BYTES = 65536
MAX_NUM_HEADERS = 256
# Kept for the store, the model and the log.
NUM_FILES_OF_OUR_OWN = 256
# Requests of one connection that wait for the answer to an earlier one.
MAX_NUM_PIPELINED = 64
_BODY_HEADERS = (b"content-length", b"transfer-encoding")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """head_seconds: from the first byte of a request to the end of its head.   stall_seconds: for a client that takes
    nothing of an answer, and for what is left of a body when the answer has been given."""

    head_seconds: float
    stall_seconds: float
    max_num_connections: int | None = None


def most_connections() -> int | None:
    """As many as this process may have files, less those it needs itself; None for any number."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if limit == resource.RLIM_INFINITY else max(1, limit - NUM_FILES_OF_OUR_OWN)


def bounded_protocol(limits: ConnectionLimits) -> type[BoundedHttpProtocol]:
    """The protocol of a server's connections: uvicorn makes one for each, and knows nothing of limits."""
    return type("BoundedHttpProtocol", (BoundedHttpProtocol,), {"limits": limits})


class BoundedHttpProtocol(HttpToolsProtocol):
    """Ends a connection that sends more than MAX_HEAD_NUM_BYTES of which neither a request nor a body comes, takes
    longer for a request's head than it may, or does not read. Refusals have the one shape of all errors."""

    limits: ClassVar[ConnectionLimits]

    _num_pending_bytes = 0
    _num_headers = 0
    _has_progressed = False
    # From the end of a head to the end of its body.
    _is_in_body = False
    _refusal: AtlasError | None = None
    # Of the request that is being answered; `cycle` is the latest that has come.
    _running: RequestResponseCycle | None = None
    # Until what has begun must have arrived; until a client must have taken something.
    _arrival_timer: asyncio.TimerHandle | None = None
    _stall_timer: asyncio.TimerHandle | None = None
    _num_unsent_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        limit = self.limits.max_num_connections
        if limit is not None and len(self.connections) > limit:
            self._refuse(TooManyConnections("the server has as many connections as it may have"))
            return
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_arrival()
        self._cancel_stall()
        self._disconnect()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._has_progressed = False
        super().data_received(data)
        self._num_pending_bytes = 0 if self._has_progressed else self._num_pending_bytes + len(data)
        if self.transport.is_closing():
            return
        if self._num_pending_bytes > MAX_HEAD_NUM_BYTES:
            self._refuse(InvalidRequest("the head of the request is too large"))
        elif self._is_answered and not self._is_in_body and self.timeout_keep_alive_task is None:
            # Something came between two requests that did not begin one.
            self._expect_within(self.limits.head_seconds)

    def on_message_begin(self) -> None:
        self._has_progressed = True
        self._num_headers = 0
        if len(self.pipeline) >= MAX_NUM_PIPELINED:
            self._refusal = InvalidRequest("too many requests at once on one connection")
            raise self._refusal
        self._expect_within(self.limits.head_seconds)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > MAX_NUM_HEADERS:
            self._refusal = InvalidRequest(f"a request has at most {MAX_NUM_HEADERS} headers")
            raise self._refusal
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and any(name in _BODY_HEADERS for name, _ in self.headers):
            # The parser takes the body for the other protocol's.
            self._refusal = InvalidRequest("a request with a body cannot ask for another protocol: send no Upgrade")
            raise self._refusal
        self._has_progressed = self._is_in_body = True
        self._cancel_arrival()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progressed = True
        self._is_in_body = False
        self._cancel_arrival()
        super().on_message_complete()
        if self._is_answered:
            self._wait_for_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()
        elif self._is_in_body and not self.pipeline:
            self._unset_keepalive_if_required()
            self._expect_within(self.limits.stall_seconds)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._cancel_stall()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._refusal or InvalidRequest("the request is not HTTP"))

    def _unsupported_upgrade_warning(self) -> None:
        """A wish for another protocol may be ignored, and is no line of the log."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    @property
    def _is_answered(self) -> bool:
        """Whether nobody is working on a request of this connection."""
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_request(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _expect_within(self, seconds: float) -> None:
        if self._arrival_timer is None:
            self._arrival_timer = self.loop.call_later(seconds, self._give_up)

    def _cancel_arrival(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None

    def _give_up(self) -> None:
        self._arrival_timer = None
        if not self._is_answered:
            # The answer that is under way is the connection's last.
            self.cycle.keep_alive = False
        elif self._is_in_body:
            self._close()
        else:
            self._refuse(RequestTimeout("the head of the request did not arrive in time"))

    def _refuse(self, refusal: AtlasError) -> None:
        """Says why, where that would not be taken for a part of an answer, and closes."""
        is_unanswered = self._running is self.cycle and not self._is_answered and not self.cycle.response_started
        if self._is_answered or is_unanswered:
            self._disconnect()
            response = error_response(refusal)
            response.headers["Connection"] = "close"
            response.headers["X-Request-Id"] = uuid.uuid4().hex
            head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
            phrase = http.HTTPStatus(response.status_code).phrase.encode()
            status = b"HTTP/1.1 %d %b\r\n" % (response.status_code, phrase)
            self.transport.write(status + head + b"\r\n" + bytes(response.body))
        self._close()

    def _disconnect(self) -> None:
        """Whoever works for the client learns that it is gone."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _close(self) -> None:
        """What is still to be sent may take as long as any client may take."""
        self.transport.close()
        self._watch_reader()

    def _watch_reader(self) -> None:
        if self._stall_timer is None:
            self._num_unsent_bytes = self.transport.get_write_buffer_size()
            self._stall_timer = self.loop.call_later(self.limits.stall_seconds, self._look_at_reader)

    def _look_at_reader(self) -> None:
        self._stall_timer = None
        if self.transport.get_write_buffer_size() < self._num_unsent_bytes:
            self._watch_reader()
        else:
            self.transport.abort()

    def _cancel_stall(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
