"""HTTP as it comes over a connection: uvicorn's httptools, which is fast and keeps all that it is sent, with a limit.

A request's head, and what may follow its body, are in memory before anybody sees the request, with a key or without.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# As much as uvicorn takes with h11. Whatever comes in one piece with a request's beginning is not counted.
MAX_HEAD_NUM_BYTES = 65536


class BoundedHttpProtocol(HttpToolsProtocol):
    """Closes a connection that sends more than MAX_HEAD_NUM_BYTES of which neither a request nor a body comes."""

    _num_pending_bytes = 0
    _has_progressed = False

    def data_received(self, data: bytes) -> None:
        self._has_progressed = False
        super().data_received(data)
        self._num_pending_bytes = 0 if self._has_progressed else self._num_pending_bytes + len(data)
        if self._num_pending_bytes > MAX_HEAD_NUM_BYTES and not self.transport.is_closing():
            if self.cycle is None or self.cycle.response_complete:
                self.send_400_response("The head of the request is too large.")
            else:
                self.transport.close()

    def on_message_begin(self) -> None:
        self._has_progressed = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._has_progressed = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_progressed = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._has_progressed = True
        super().on_message_complete()
